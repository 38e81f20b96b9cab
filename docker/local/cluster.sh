# shellcheck shell=bash
# Owns the network and the brokers' settings of `./dev chaos --scenario cluster`: three brokers, two gateways and two
# processors, each in a network namespace of its own, on one bridge. sluice-chaos starts them, and breaks them and the network.

readonly CLUSTER_BROKERS=3
# The namespaces, with the last byte of each one's address.
readonly CLUSTER_PLACES="broker-1:1 broker-2:2 broker-3:3 gateway-0:10 gateway-1:11 processor-0:20 processor-1:21"
readonly CLUSTER_HOST_BYTE=254
# The broker whose disk is small enough to be filled, and the disk's size: enough for the records of several trials.
readonly CLUSTER_SMALL=3 CLUSTER_SMALL_SIZE=1g
# Set while the network is there, so that every way out of the script removes it.
CLUSTER_MADE=""

# cluster_lacks: prints why there can be no cluster here; prints nothing where there can.
cluster_lacks() {
  if ! is_root; then
    say "it needs root, to make network namespaces"
  elif ! ip netns add "$HOME_ID-probe" 2>/dev/null; then
    say "this system lets nobody make network namespaces"
  else
    ip netns delete "$HOME_ID-probe"
  fi
}

# The names carry the stack's own number, so that only what is ours is removed, also after a run that was killed.
cluster_names() {
  local number=$(($(short_hash "$HOME_ID") % 250))
  CLUSTER_PREFIX="sluice-$number-"
  CLUSTER_BRIDGE="slbr$number"
  CLUSTER_NETWORK="10.213.$number"
  CLUSTER_LINKS="sl$number-"
  # Not below $DATA, which could not be removed as long as it is mounted there.
  CLUSTER_DISK="/tmp/$HOME_ID-broker-$CLUSTER_SMALL"
}

cluster_up() {
  cluster_names
  cluster_down_quietly
  [[ -z "$(ip -4 route show "$CLUSTER_NETWORK.0/24")" ]] ||
    die "this machine has a route to $CLUSTER_NETWORK.0/24 already, which the cluster's network would hide"
  CLUSTER_MADE=yes
  ip link add "$CLUSTER_BRIDGE" type bridge
  ip address add "$CLUSTER_NETWORK.$CLUSTER_HOST_BYTE/24" dev "$CLUSTER_BRIDGE"
  ip link set "$CLUSTER_BRIDGE" up
  local place
  for place in $CLUSTER_PLACES; do cluster_place "${place%:*}" "${place#*:}"; done
  cluster_brokers
  export SLUICE_TEST_CLUSTER_PREFIX="$CLUSTER_PREFIX"
  export SLUICE_TEST_CLUSTER_NETWORK="$CLUSTER_NETWORK"
  export SLUICE_TEST_CLUSTER_BROKER="$RUN/broker.sh"
  export SLUICE_TEST_CLUSTER_DISK="$CLUSTER_DISK"
}

# cluster_place NAME BYTE: a namespace with a link to the bridge. Every namespace calls its end eth0.
cluster_place() {
  local namespace="$CLUSTER_PREFIX$1" link="$CLUSTER_LINKS$2"
  ip netns add "$namespace"
  ip link add "$link" type veth peer name eth0 netns "$namespace"
  ip link set "$link" master "$CLUSTER_BRIDGE" up
  ip -n "$namespace" address add "$CLUSTER_NETWORK.$2/24" dev eth0
  ip -n "$namespace" link set eth0 up
  ip -n "$namespace" link set lo up
}

cluster_broker_settings() {
  local broker="$1" voters=() number address="$CLUSTER_NETWORK.$1" disk="$DATA/broker-$1"
  if ((broker == CLUSTER_SMALL)); then disk="$CLUSTER_DISK"; fi
  for ((number = 1; number <= CLUSTER_BROKERS; number++)); do voters+=("$number@$CLUSTER_NETWORK.$number:9093"); done
  cat <<SETTINGS
process.roles=broker,controller
node.id=$broker
controller.quorum.voters=$(IFS=, && echo "${voters[*]}")
listeners=CLIENT://$address:9092,CONTROLLER://$address:9093
advertised.listeners=CLIENT://$address:9092
listener.security.protocol.map=CLIENT:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=CLIENT
controller.listener.names=CONTROLLER
log.dirs=$disk
auto.create.topics.enable=false

# What is acknowledged is on two disks at least.
default.replication.factor=3
min.insync.replicas=2
unclean.leader.election.enable=false
offsets.topic.replication.factor=3
transaction.state.log.replication.factor=3
transaction.state.log.min.isr=2
share.coordinator.state.topic.replication.factor=3
share.coordinator.state.topic.min.isr=2

# One partition of transactions has one coordinator, so that a trial knows which broker to kill.
transaction.state.log.num.partitions=1
offsets.topic.num.partitions=4
share.coordinator.state.topic.num.partitions=1
log.cleaner.dedupe.buffer.size=8388608
num.network.threads=2
num.io.threads=2

# A broker that is gone, or lags, should be noticed within a trial's seconds.
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
replica.lag.time.max.ms=4000
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=2000
transaction.abort.timed.out.transaction.cleanup.interval.ms=1000
SETTINGS
}

# Formats each broker's storage, and writes the script that starts one: sluice-chaos starts them anew after it killed them.
cluster_brokers() {
  local id broker
  mkdir -p "$CLUSTER_DISK"
  mount -t tmpfs -o size="$CLUSTER_SMALL_SIZE" sluice "$CLUSTER_DISK"
  id="x$(head -c 16 /dev/urandom | base64 | tr '+/' '-_' | cut -c1-20)A"
  for ((broker = 1; broker <= CLUSTER_BROKERS; broker++)); do
    cluster_broker_settings "$broker" >"$RUN/broker-$broker.properties"
    quietly "broker-$broker-format" "formatting the storage of broker $broker" \
      kafka_java -XX:TieredStopAtLevel=1 kafka.tools.StorageTool format -t "$id" -c "$RUN/broker-$broker.properties"
  done
  cat >"$RUN/broker.sh" <<SCRIPT
#!/usr/bin/env bash
# Becomes the broker with the number that is given.
exec ip netns exec "$CLUSTER_PREFIX"broker-"\$1" env -u JAVA_TOOL_OPTIONS -u JDK_JAVA_OPTIONS -u CLASSPATH \\
  "$JAVA" -Xms128m -Xmx384m -XX:+UseSerialGC -XX:+ExitOnOutOfMemoryError -Djava.awt.headless=true \\
  -XX:SharedArchiveFile="$CACHE/kafka.jsa" -Xlog:cds=off -Xlog:aot=off \\
  -Dlog4j2.configurationFile="$LOCAL/kafka-log4j2.properties" -cp "$(<"$CACHE/kafka.classpath")" kafka.Kafka \\
  "$RUN/broker-\$1.properties"
SCRIPT
  chmod +x "$RUN/broker.sh"
}

# Removes what carries our names: namespaces with their links and rules, and the bridge. The processes in them are gone with
# sluice-chaos, whose children they are.
cluster_down() {
  [[ -n $CLUSTER_MADE ]] || return 0
  CLUSTER_MADE=""
  cluster_down_quietly
}

cluster_down_quietly() {
  local namespace
  while read -r namespace _; do
    if [[ $namespace == "$CLUSTER_PREFIX"* ]]; then ip netns delete "$namespace" || true; fi
  done < <(ip netns list)
  ip link delete "$CLUSTER_BRIDGE" 2>/dev/null || true
  # Lazily, because a broker that was just killed may still have files open there.
  umount --lazy "$CLUSTER_DISK" 2>/dev/null || true
  rmdir "$CLUSTER_DISK" 2>/dev/null || true
}
