// Command example publishes ten payments and prints the decision about each of them as it arrives.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"
	"google.golang.org/genproto/googleapis/type/money"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sluice-gateway/sluice/clients/go/sluicev1"
)

const (
	timeout = 30 * time.Second
	// subscribeCredit is how many decisions the gateway may have on the way to us at a time.
	subscribeCredit = 100
)

// amountsCents ends above 10,000 EUR, so that the rule LARGE_AMOUNT fires.
var amountsCents = []int64{499, 1250, 1999, 2500, 3075, 4200, 5990, 7525, 8999, 1_250_000}

var errEnded = errors.New("the gateway ended the stream")

func main() {
	target := env("SLUICE_TARGET", "127.0.0.1:50051")
	accountID := "example-" + uuid.NewString()
	var events []*sluicev1.Event
	missing := map[string]bool{}
	for _, cents := range amountsCents {
		event := payment(accountID, cents)
		events = append(events, event)
		missing[event.GetEventId()] = true
	}

	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	err := run(ctx, target, accountID, events, missing)
	if err == nil {
		return
	}
	message := err.Error()
	if status.Code(err) == codes.DeadlineExceeded {
		arrived := len(events) - len(missing)
		message = fmt.Sprintf("not done within %s: %d of %d decisions arrived", timeout, arrived, len(events))
	} else if s, ok := status.FromError(err); ok {
		message = fmt.Sprintf("%s: %s: %s", target, s.Code(), s.Message())
	}
	fmt.Fprintln(os.Stderr, "error:", message)
	os.Exit(1)
}

// run publishes the events and removes each from missing when its decision arrives.
func run(ctx context.Context, target, accountID string, events []*sluicev1.Event, missing map[string]bool) error {
	// Without TLS, as the development gateway is: elsewhere use credentials.NewTLS, or the key can be read.
	conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+env("SLUICE_API_KEY", "sluice-dev-key"))
	group, ctx := errgroup.WithContext(ctx)

	// Subscribed before anything is published, and ready: no decision can be missed.
	decisions, err := subscribe(ctx, conn, accountID)
	if err != nil {
		return err
	}

	// Both at once: decisions arrive while later payments are still being published.
	group.Go(func() error { return publish(ctx, conn, events) })
	group.Go(func() error { return receive(decisions, missing) })
	return group.Wait()
}

type subscription = sluicev1.DecisionService_SubscribeClient

// subscribe opens a subscription and returns when it stands.
func subscribe(ctx context.Context, conn *grpc.ClientConn, accountID string) (subscription, error) {
	stream, err := sluicev1.NewDecisionServiceClient(conn).Subscribe(ctx)
	if err != nil {
		return nil, err
	}
	open := &sluicev1.SubscribeOpen{
		Start:  &sluicev1.SubscribeOpen_Latest{Latest: &sluicev1.Latest{}},
		Filter: &sluicev1.DecisionFilter{AccountIds: []string{accountID}},
		Credit: subscribeCredit,
	}
	err = send(stream, &sluicev1.SubscribeRequest{Message: &sluicev1.SubscribeRequest_Open{Open: open}})
	if err != nil {
		return nil, err
	}
	response, err := receiveOne(stream)
	if err != nil {
		return nil, err
	}
	if response.GetReady() == nil {
		return nil, errors.New("the gateway did not answer Open with Ready")
	}
	return stream, nil
}

// receive prints decisions until none is missing.
func receive(stream subscription, missing map[string]bool) error {
	for len(missing) > 0 {
		response, err := receiveOne(stream)
		if err != nil {
			return err
		}
		// Progress moves the position without a decision, and Drain asks nothing of a client that is done in a moment.
		decisions := response.GetBatch().GetDecisions()
		if len(decisions) == 0 {
			continue
		}
		for _, decision := range decisions {
			if !missing[decision.GetEventId()] {
				return fmt.Errorf("the decision about %s came twice, or nobody asked for it", decision.GetEventId())
			}
			delete(missing, decision.GetEventId())
			fmt.Println(line(decision))
		}
		// Credit is given back once the decisions are processed, so that a slow client is never flooded.
		credit := &sluicev1.SubscribeCredit{Decisions: uint32(len(decisions))}
		err = send(stream, &sluicev1.SubscribeRequest{Message: &sluicev1.SubscribeRequest_Credit{Credit: credit}})
		if err != nil {
			return err
		}
	}
	return nil
}

// publish publishes the events and returns when all of them are stored.
func publish(ctx context.Context, conn *grpc.ClientConn, events []*sluicev1.Event) error {
	stream, err := sluicev1.NewIngestServiceClient(conn).Publish(ctx)
	if err != nil {
		return err
	}
	// A real publisher keeps its producer_id, and raises the epoch with every start.
	open := &sluicev1.PublishOpen{ProducerId: uuid.NewString(), Epoch: 1}
	if err := send(stream, &sluicev1.PublishRequest{Message: &sluicev1.PublishRequest_Open{Open: open}}); err != nil {
		return err
	}
	response, err := receiveOne(stream)
	if err != nil {
		return err
	}
	ready := response.GetReady()
	if ready == nil {
		return errors.New("the gateway did not answer Open with Ready")
	}

	nextSequence, credit, unacked := ready.GetNextSequence(), &sluicev1.Credit{}, uint64(len(events))
	proto.Merge(credit, ready.GetCredit())
	for unacked > 0 {
		if n := affordable(events, credit, ready.GetLimits().GetMaxBatchEvents()); n > 0 {
			batch := &sluicev1.EventBatch{FirstSequence: nextSequence, Events: events[:n]}
			err := send(stream, &sluicev1.PublishRequest{Message: &sluicev1.PublishRequest_Batch{Batch: batch}})
			if err != nil {
				return err
			}
			nextSequence += uint64(n)
			events = events[n:]
			continue
		}

		// Nothing more may be sent now, so it is time to listen.
		response, err := receiveOne(stream)
		if err != nil {
			return err
		}
		switch message := response.GetMessage().(type) {
		case *sluicev1.PublishResponse_Ack:
			ack := message.Ack
			if ack.GetStatus() != sluicev1.AckStatus_ACK_STATUS_STORED {
				why := ack.GetError()
				return fmt.Errorf("event %d got %s: %s: %s; %s",
					ack.GetFirstSequence(), ack.GetStatus(), why.GetField(), why.GetReason(), why.GetRemedy())
			}
			unacked -= ack.GetLastSequence() - ack.GetFirstSequence() + 1
		case *sluicev1.PublishResponse_Credit:
			credit.Events += message.Credit.GetEvents()
			credit.Bytes += message.Credit.GetBytes()
		}
		// Throttle, Drain and Ping ask nothing of a client that is done in a moment.
	}
	return stream.CloseSend()
}

// affordable counts the events that the next batch can hold, and takes them off the credit.
func affordable(events []*sluicev1.Event, credit *sluicev1.Credit, maxBatchEvents uint32) int {
	for n, event := range events {
		bytes := int64(proto.Size(event))
		if n == int(maxBatchEvents) || credit.Events < 1 || credit.Bytes < bytes {
			return n
		}
		credit.Events--
		credit.Bytes -= bytes
	}
	return len(events)
}

func payment(accountID string, cents int64) *sluicev1.Event {
	return &sluicev1.Event{
		// Version 7 begins with the time, which keeps the indexes over event_ids small and fast.
		EventId:    uuid.Must(uuid.NewV7()).String(),
		OccurredAt: timestamppb.Now(),
		Payload: &sluicev1.Event_Payment{Payment: &sluicev1.PaymentEvent{
			AccountId: accountID,
			// Money is whole units and billionths, never a float.
			Amount:           &money.Money{CurrencyCode: "EUR", Units: cents / 100, Nanos: int32(cents%100) * 10_000_000},
			MerchantId:       "example-shop",
			MerchantCategory: "5732",
			Method:           sluicev1.PaymentMethod_PAYMENT_METHOD_CARD_NOT_PRESENT,
		}},
	}
}

func line(decision *sluicev1.FraudDecision) string {
	var reasons []string
	for _, reason := range decision.GetReasons() {
		reasons = append(reasons, reason.GetRuleId())
	}
	if reasons == nil {
		reasons = []string{"-"}
	}
	outcome := strings.TrimPrefix(decision.GetOutcome().String(), "OUTCOME_")
	return fmt.Sprintf("%s %s %.3f %s", decision.GetEventId(), outcome, decision.GetScore(), strings.Join(reasons, ","))
}

// send does not report a stream that is over, since only receiving tells why it is.
func send[Request, Response any](stream grpc.BidiStreamingClient[Request, Response], request *Request) error {
	if err := stream.Send(request); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

func receiveOne[Request, Response any](stream grpc.BidiStreamingClient[Request, Response]) (*Response, error) {
	response, err := stream.Recv()
	if errors.Is(err, io.EOF) {
		return nil, errEnded
	}
	return response, err
}

func env(name, fallback string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return fallback
}
