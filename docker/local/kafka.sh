# shellcheck shell=bash
# Owns the local Kafka broker: one KRaft node that is broker and controller, from Maven artifacts, on loopback.

readonly KAFKA_READY_TIMEOUT_S=90

kafka_java() {
  java_run -Dlog4j2.configurationFile="$LOCAL/kafka-log4j2.properties" -cp "$(<"$CACHE/kafka.classpath")" "$@"
}

kafka_settings() {
  cat <<SETTINGS
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$PORT_KAFKA_CONTROLLER
listeners=CLIENT://127.0.0.1:$PORT_KAFKA,CONTROLLER://127.0.0.1:$PORT_KAFKA_CONTROLLER
advertised.listeners=CLIENT://127.0.0.1:$PORT_KAFKA
listener.security.protocol.map=CLIENT:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=CLIENT
controller.listener.names=CONTROLLER
log.dirs=$DATA/kafka
auto.create.topics.enable=false

# There is one broker, so nothing can be replicated.
default.replication.factor=1
min.insync.replicas=1
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1

# Few internal partitions start faster, and a local stack has few groups and few transactional ids.
offsets.topic.num.partitions=4
transaction.state.log.num.partitions=4
share.coordinator.state.topic.num.partitions=1
log.cleaner.dedupe.buffer.size=8388608
num.network.threads=2
num.io.threads=4

# A lone consumer need not wait for others, and a killed one should be noticed soon: sessions of 6 s and below.
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=2000
transaction.abort.timed.out.transaction.cleanup.interval.ms=1000
SETTINGS
}

# The storage is formatted aside and moved into place, so that an interrupted first start leaves nothing half made.
kafka_format() {
  [[ ! -f "$DATA/kafka/meta.properties" ]] || return 0
  local id
  id="x$(head -c 16 /dev/urandom | base64 | tr '+/' '-_' | cut -c1-20)A"
  rm -rf "$DATA/kafka" "$DATA/kafka.new"
  sed "s|^log.dirs=.*|log.dirs=$DATA/kafka.new|" "$RUN/kafka.properties" >"$RUN/kafka-format.properties"
  quietly kafka-format "formatting Kafka's storage" \
    kafka_java -XX:TieredStopAtLevel=1 kafka.tools.StorageTool format -t "$id" -c "$RUN/kafka-format.properties"
  mv "$DATA/kafka.new" "$DATA/kafka"
}

kafka_start() {
  if part_runs kafka; then return 0; fi
  require_port_free KAFKA
  require_port_free KAFKA_CONTROLLER
  kafka_settings >"$RUN/kafka.properties"
  kafka_format
  # The class-data archive is written when the first broker stops, and saves a second at every start after that.
  start_part kafka "$JAVA" -Xms256m -Xmx512m -XX:+UseG1GC -XX:+ExitOnOutOfMemoryError \
    -XX:+AutoCreateSharedArchive -XX:SharedArchiveFile="$CACHE/kafka.jsa" -Xlog:cds=off -Xlog:aot=off \
    -Djava.awt.headless=true -Dlog4j2.configurationFile="$LOCAL/kafka-log4j2.properties" \
    -cp "$(<"$CACHE/kafka.classpath")" kafka.Kafka "$RUN/kafka.properties"
}

kafka_ready() { grep -q 'Kafka Server started' "$LOG/kafka.log"; }
kafka_wait() { wait_for kafka "$KAFKA_READY_TIMEOUT_S" kafka_ready; }
