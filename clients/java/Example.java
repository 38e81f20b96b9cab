import com.google.protobuf.Timestamp;
import com.google.type.Money;
import com.sluice.v1.Ack;
import com.sluice.v1.AckStatus;
import com.sluice.v1.Credit;
import com.sluice.v1.DecisionFilter;
import com.sluice.v1.DecisionServiceGrpc;
import com.sluice.v1.Event;
import com.sluice.v1.EventBatch;
import com.sluice.v1.EventError;
import com.sluice.v1.FraudDecision;
import com.sluice.v1.IngestServiceGrpc;
import com.sluice.v1.Latest;
import com.sluice.v1.PaymentEvent;
import com.sluice.v1.PaymentMethod;
import com.sluice.v1.PublishOpen;
import com.sluice.v1.PublishReady;
import com.sluice.v1.PublishRequest;
import com.sluice.v1.PublishResponse;
import com.sluice.v1.Reason;
import com.sluice.v1.SubscribeCredit;
import com.sluice.v1.SubscribeOpen;
import com.sluice.v1.SubscribeRequest;
import com.sluice.v1.SubscribeResponse;
import io.grpc.Channel;
import io.grpc.Deadline;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.StatusException;
import io.grpc.stub.BlockingClientCall;
import io.grpc.stub.MetadataUtils;
import java.time.Instant;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.Queue;
import java.util.Set;
import java.util.UUID;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorCompletionService;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;
import java.util.stream.Collectors;

/** Publishes ten payments and prints the decision about each of them as it arrives. */
final class Example {
  private static final String TARGET = env("SLUICE_TARGET", "127.0.0.1:50051");
  private static final String API_KEY = env("SLUICE_API_KEY", "sluice-dev-key");
  private static final int TIMEOUT_S = 30;

  /** Decisions that the gateway may have on the way to us at a time. */
  private static final int SUBSCRIBE_CREDIT = 100;

  /** The last one is above 10,000 EUR, so that the rule LARGE_AMOUNT fires. */
  private static final List<Integer> AMOUNTS_CENTS =
      List.of(499, 1250, 1999, 2500, 3075, 4200, 5990, 7525, 8999, 1_250_000);

  /** Says in one line why the example did not succeed. */
  private static final class Failed extends Exception {
    Failed(String message) {
      super(message);
    }
  }

  public static void main(String[] args) throws InterruptedException {
    String accountId = "example-" + UUID.randomUUID();
    List<Event> events = AMOUNTS_CENTS.stream().map(cents -> payment(accountId, cents)).toList();
    Set<String> missing = ConcurrentHashMap.newKeySet();
    events.forEach(event -> missing.add(event.getEventId()));

    String error = null;
    try {
      run(accountId, events, missing);
    } catch (StatusException e) {
      Status status = e.getStatus();
      if (status.getCode() == Status.Code.DEADLINE_EXCEEDED) {
        int arrived = events.size() - missing.size();
        error = "not done within %d s: %d of %d decisions arrived".formatted(TIMEOUT_S, arrived, events.size());
      } else {
        // Of a connection that cannot be made, only the cause says why.
        String why = status.getCause() == null ? status.getDescription() : status.getCause().getMessage();
        error = "%s: %s: %s".formatted(TARGET, status.getCode(), why);
      }
    } catch (Failed e) {
      error = e.getMessage();
    }
    if (error != null) {
      System.err.println("error: " + error);
    }
    // Ends the streams and threads that are still there, too.
    System.exit(error == null ? 0 : 1);
  }

  /** Publishes the events and removes each from {@code missing} when its decision arrives. */
  private static void run(String accountId, List<Event> events, Set<String> missing)
      throws StatusException, Failed, InterruptedException {
    Metadata headers = new Metadata();
    headers.put(Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER), "Bearer " + API_KEY);
    // Without TLS, as the development gateway is: elsewhere use TlsChannelCredentials, or the key can be read.
    Channel channel =
        Grpc.newChannelBuilder(TARGET, InsecureChannelCredentials.create())
            .intercept(MetadataUtils.newAttachHeadersInterceptor(headers))
            .build();
    Deadline deadline = Deadline.after(TIMEOUT_S, TimeUnit.SECONDS);

    // Subscribed before anything is published, and ready: no decision can be missed. The streams of the blocking stubs
    // are marked experimental in grpc-java; StreamObserver is the older way, at the price of inverted control flow.
    var subscription = DecisionServiceGrpc.newBlockingV2Stub(channel).withDeadline(deadline).subscribe();
    SubscribeOpen.Builder open =
        SubscribeOpen.newBuilder()
            .setLatest(Latest.getDefaultInstance())
            .setFilter(DecisionFilter.newBuilder().addAccountIds(accountId))
            .setCredit(SUBSCRIBE_CREDIT);
    subscription.write(SubscribeRequest.newBuilder().setOpen(open).build());
    if (!read(subscription).hasReady()) {
      throw new Failed("the gateway did not answer Open with Ready");
    }

    // Both at once: decisions arrive while later payments are still being published.
    var session = IngestServiceGrpc.newBlockingV2Stub(channel).withDeadline(deadline).publish();
    var both = new ExecutorCompletionService<Void>(Executors.newCachedThreadPool());
    both.submit(
        () -> {
          publish(session, events);
          return null;
        });
    both.submit(
        () -> {
          receive(subscription, missing);
          return null;
        });
    try {
      both.take().get();
      both.take().get();
    } catch (ExecutionException e) {
      if (e.getCause() instanceof StatusException status) {
        throw status;
      }
      if (e.getCause() instanceof Failed failed) {
        throw failed;
      }
      throw new IllegalStateException(e.getCause());
    }
  }

  /** Publishes the events and returns when all of them are stored. */
  private static void publish(BlockingClientCall<PublishRequest, PublishResponse> session, List<Event> events)
      throws StatusException, Failed, InterruptedException {
    // A real publisher keeps its producer_id, and raises the epoch with every start.
    PublishOpen.Builder open = PublishOpen.newBuilder().setProducerId(UUID.randomUUID().toString()).setEpoch(1);
    session.write(PublishRequest.newBuilder().setOpen(open).build());
    PublishResponse first = read(session);
    if (!first.hasReady()) {
      throw new Failed("the gateway did not answer Open with Ready");
    }
    PublishReady ready = first.getReady();

    Queue<Event> pending = new ArrayDeque<>(events);
    Credit.Builder credit = ready.getCredit().toBuilder();
    long nextSequence = ready.getNextSequence();
    long unacked = events.size();
    while (unacked > 0) {
      List<Event> batch = take(pending, credit, ready.getLimits().getMaxBatchEvents());
      if (!batch.isEmpty()) {
        EventBatch.Builder message = EventBatch.newBuilder().setFirstSequence(nextSequence).addAllEvents(batch);
        session.write(PublishRequest.newBuilder().setBatch(message).build());
        nextSequence += batch.size();
        continue;
      }

      // Nothing more may be sent now, so it is time to listen.
      PublishResponse response = read(session);
      if (response.hasAck()) {
        Ack ack = response.getAck();
        if (ack.getStatus() != AckStatus.ACK_STATUS_STORED) {
          EventError why = ack.getError();
          throw new Failed(
              "event %d got %s: %s: %s; %s"
                  .formatted(
                      ack.getFirstSequence(), ack.getStatus(), why.getField(), why.getReason(), why.getRemedy()));
        }
        unacked -= ack.getLastSequence() - ack.getFirstSequence() + 1;
      } else if (response.hasCredit()) {
        credit.setEvents(credit.getEvents() + response.getCredit().getEvents());
        credit.setBytes(credit.getBytes() + response.getCredit().getBytes());
      }
      // Throttle, Drain and Ping ask nothing of a client that is done in a moment.
    }
    session.halfClose();
  }

  /** Moves as many events into a batch as the credit allows, and takes them off the credit. */
  private static List<Event> take(Queue<Event> pending, Credit.Builder credit, int maxBatchEvents) {
    List<Event> batch = new ArrayList<>();
    while (!pending.isEmpty() && batch.size() < maxBatchEvents) {
      int bytes = pending.peek().getSerializedSize();
      if (credit.getEvents() < 1 || credit.getBytes() < bytes) {
        break;
      }
      credit.setEvents(credit.getEvents() - 1).setBytes(credit.getBytes() - bytes);
      batch.add(pending.remove());
    }
    return batch;
  }

  /** Prints decisions until none is missing. */
  private static void receive(
      BlockingClientCall<SubscribeRequest, SubscribeResponse> subscription, Set<String> missing)
      throws StatusException, Failed, InterruptedException {
    while (!missing.isEmpty()) {
      SubscribeResponse response = read(subscription);
      // Progress moves the position without a decision, and Drain asks nothing of a client that is done in a moment.
      if (!response.hasBatch()) {
        continue;
      }
      for (FraudDecision decision : response.getBatch().getDecisionsList()) {
        String eventId = decision.getEventId();
        if (!missing.remove(eventId)) {
          throw new Failed("the decision about %s came twice, or nobody asked for it".formatted(eventId));
        }
        System.out.println(line(decision));
      }
      // Credit is given back once the decisions are processed, so that a slow client is never flooded.
      int processed = response.getBatch().getDecisionsCount();
      SubscribeCredit.Builder credit = SubscribeCredit.newBuilder().setDecisions(processed);
      subscription.write(SubscribeRequest.newBuilder().setCredit(credit).build());
    }
  }

  private static <T> T read(BlockingClientCall<?, T> stream) throws StatusException, Failed, InterruptedException {
    T response = stream.read();
    if (response == null) {
      throw new Failed("the gateway ended the stream");
    }
    return response;
  }

  private static Event payment(String accountId, int cents) {
    Instant now = Instant.now();
    return Event.newBuilder()
        .setEventId(uuid7().toString())
        .setOccurredAt(Timestamp.newBuilder().setSeconds(now.getEpochSecond()).setNanos(now.getNano()))
        .setPayment(
            PaymentEvent.newBuilder()
                .setAccountId(accountId)
                // Money is whole units and billionths, never a float.
                .setAmount(
                    Money.newBuilder()
                        .setCurrencyCode("EUR")
                        .setUnits(cents / 100)
                        .setNanos(cents % 100 * 10_000_000))
                .setMerchantId("example-shop")
                .setMerchantCategory("5732")
                .setMethod(PaymentMethod.PAYMENT_METHOD_CARD_NOT_PRESENT))
        .build();
  }

  /** Makes an event_id. It begins with the time, which keeps the indexes over event_ids small and fast. */
  private static UUID uuid7() {
    UUID random = UUID.randomUUID();
    long time = System.currentTimeMillis() << 16 | 0x7000 | random.getMostSignificantBits() & 0xfff;
    return new UUID(time, random.getLeastSignificantBits());
  }

  private static String line(FraudDecision decision) {
    String outcome = decision.getOutcome().name().replaceFirst("^OUTCOME_", "");
    String rules = decision.getReasonsList().stream().map(Reason::getRuleId).collect(Collectors.joining(","));
    String score = String.format(Locale.ROOT, "%.3f", decision.getScore());
    return String.join(" ", decision.getEventId(), outcome, score, rules.isEmpty() ? "-" : rules);
  }

  private static String env(String name, String fallback) {
    String value = System.getenv(name);
    return value == null || value.isEmpty() ? fallback : value;
  }
}
