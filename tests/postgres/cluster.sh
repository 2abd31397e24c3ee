#!/bin/bash
# A PostgreSQL cluster on one machine for tests and campaigns.
#
#   cluster.sh create [1|3 [--netns]]
#                              one node without a standby, or a primary and two standbys of which one
#                              must have flushed before a commit returns (default: 3). With --netns
#                              each node has a network namespace of its own, if that can be made
#   cluster.sh status          a line a node: its role, its position, its standbys
#   cluster.sh url             how a client connects to the nodes
#   cluster.sh sql N TEXT      runs TEXT on node N
#   cluster.sh kill N          SIGKILL to node N and its children, by their IDs
#   cluster.sh start N         starts node N again as what it was
#   cluster.sh promote N       node N is gone: promotes the better of the others, and prints its number
#   cluster.sh rejoin N P      makes node N a standby of primary P again, wherever it had come to
#   cluster.sh freeze N        SIGSTOP to node N and its children; `thaw N` ends it
#   cluster.sh netns           prints whether the nodes have network namespaces: yes or no
#   cluster.sh cut A B         drops all packets between two nodes, or between a node and `client`
#   cluster.sh heal            ends all cuts
#   cluster.sh destroy         stops all nodes and removes their folders
#
# Nodes are numbered from 1. SESSIONLOG_PG_ROOT is their folder, SESSIONLOG_PG_PORT the port of node
# 1 (the others follow), SESSIONLOG_PG_BIN the folder of PostgreSQL's programs. PostgreSQL does not
# run as root: a caller that is root runs it as the user postgres. The nodes speak TLS to whoever
# asks for it, with the certificate tests/data/tls/first.pem. That does not name the address
# 127.0.0.2, at which they answer too.
#
# Network namespaces need root, `ip` and `iptables`. The nodes then answer at 10.A.B.N, where A and B
# are the bytes of the port of node 1, and the caller has 10.A.B.254. This script reaches them through
# their sockets, so a cut does not concern it.
set -euo pipefail
export LC_ALL=C PGCONNECT_TIMEOUT=2 PGOPTIONS=
tls=$(dirname "$0")/../data/tls
root=${SESSIONLOG_PG_ROOT:-/tmp/sessionlog-postgres}
port=${SESSIONLOG_PG_PORT:-5541}
bin=${SESSIONLOG_PG_BIN:-$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -1 || true)}
[ -x "$bin/initdb" ] || { echo "no PostgreSQL found: install postgresql-15" >&2; exit 69; }

# The words before a command that make it run as who may run PostgreSQL.
become=()
[ "$(id -u)" != 0 ] || become=(setpriv --reuid=postgres --regid=postgres --clear-groups)
as_postgres() { "${become[@]}" "$@"; }
folder() { echo "$root/n$1"; }
port_of() { echo $((port + $1 - 1)); }
nodes() { cat "$root/nodes"; }
net=10.$((port / 256)).$((port % 256))
bridge=slog$port
space_of() { echo "$bridge-n$1"; }
has_spaces() { [ -f "$root/netns" ]; }
host_of() {
  if ! has_spaces; then echo 127.0.0.1; elif [ "$1" = client ]; then echo "$net.254"; else echo "$net.$1"; fi
}
# Runs a command in the network of a node.
at_node() { # node, command
  if has_spaces; then ip netns exec "$(space_of "$1")" "${@:2}"; else "${@:2}"; fi
}
sql() { as_postgres "$bin/psql" -XAtq -h "$root" -p "$(port_of "$1")" -U postgres -d postgres -c "$2"; }
write() { as_postgres tee "$1" >/dev/null; }

# Waits up to ten seconds for a command to print a text.
await() {
  local text=$1; shift
  for _ in $(seq 200); do
    [ "$("$@" 2>/dev/null || true)" = "$text" ] && return
    sleep 0.05
  done
  echo "still waiting for $text of: $*" >&2
  return 1
}

configure() { # node, the setting of synchronous_standby_names
  cat <<CONF | write "$(folder "$1")/node.conf"
port = $(port_of "$1")
listen_addresses = '127.0.0.1, 127.0.0.2$(! has_spaces || echo ", $(host_of "$1")")'
unix_socket_directories = '$root'
cluster_name = 'n$1'
synchronous_standby_names = '$2'
synchronous_commit = on
ssl = on
shared_buffers = 128MB
max_connections = 200
max_wal_size = 2GB
wal_level = replica
wal_log_hints = on
wal_keep_size = 1GB
wal_receiver_status_interval = 1s
wal_retrieve_retry_interval = 200ms
hot_standby = on
log_min_messages = warning
CONF
}

certify() { # node; a standby gets a copy
  as_postgres install -m 600 /dev/null "$(folder "$1")/server.key"
  write "$(folder "$1")/server.key" <"$tls/first.key.pem"
  write "$(folder "$1")/server.crt" <"$tls/first.pem"
}

start() {
  at_node "$1" "${become[@]}" "$bin/pg_ctl" -D "$(folder "$1")" -l "$root/n$1.log" -w -t 300 start >/dev/null
}

stop() {
  as_postgres "$bin/pg_ctl" -D "$(folder "$1")" -m immediate -w stop >/dev/null 2>&1 || true
}

follow() { # node, primary; nothing is followed without one
  if [ -n "$2" ]; then
    as_postgres touch "$(folder "$1")/standby.signal"
    echo "primary_conninfo = 'host=$(host_of "$2") port=$(port_of "$2") user=postgres application_name=n$1'" |
      write "$(folder "$1")/standby.conf"
  else
    echo "primary_conninfo = ''" | write "$(folder "$1")/standby.conf"
  fi
}

family() { # the processes of a node
  local first
  first=$(head -1 "$(folder "$1")/postmaster.pid")
  echo "$first" "$(cat "/proc/$first/task/$first/children" 2>/dev/null || true)"
}

may_make_spaces() {
  [ "$(id -u)" = 0 ] && command -v ip >/dev/null && command -v iptables >/dev/null &&
    ip link add "$bridge" type bridge && ip netns add "$(space_of 1)" &&
    ip netns exec "$(space_of 1)" iptables -w -L -n >/dev/null && ip netns del "$(space_of 1)"
}

# A bridge, and for each node a namespace with a cable to it.
make_spaces() { # nodes
  if ! may_make_spaces; then
    echo "no network namespaces here: the nodes share this one" >&2
    remove_spaces
    return
  fi
  as_postgres touch "$root/netns"
  ip addr add "$(host_of client)/24" dev "$bridge"
  ip link set "$bridge" up
  for node in $(seq "$1"); do
    ip netns add "$(space_of "$node")"
    ip link add "$bridge.$node" type veth peer name eth0 netns "$(space_of "$node")"
    ip link set "$bridge.$node" master "$bridge" up
    at_node "$node" ip addr add "$(host_of "$node")/24" dev eth0
    at_node "$node" ip link set eth0 up
    at_node "$node" ip link set lo up
  done
}

remove_spaces() {
  for node in 1 2 3; do ip netns del "$(space_of "$node")" 2>/dev/null || true; done
  ip link del "$bridge" 2>/dev/null || true
}

cut_off() { # node, node or client
  local node=$1 other=$2
  has_spaces || { echo "the nodes have no network namespaces" >&2; exit 69; }
  if [ "$node" = client ]; then node=$2 other=client; fi
  at_node "$node" iptables -w -A INPUT -s "$(host_of "$other")" -j DROP
  at_node "$node" iptables -w -A OUTPUT -d "$(host_of "$other")" -j DROP
}

heal() {
  for node in $(nodes); do at_node "$node" iptables -w -F; done
}

create() {
  local count=${1:-3} names=
  [ "$count" = 1 ] || names='ANY 1 (n1, n2, n3)'
  destroy
  mkdir -p "$root"
  [ "$(id -u)" != 0 ] || chown postgres "$root"
  chmod 700 "$root"
  seq "$count" | write "$root/nodes"
  [ "${2:-}" != --netns ] || make_spaces "$count"
  as_postgres "$bin/initdb" -D "$(folder 1)" -U postgres -A trust -E UTF8 --no-locale --no-sync -k >/dev/null
  printf "include 'node.conf'\ninclude_if_exists 'standby.conf'\n" |
    as_postgres tee -a "$(folder 1)/postgresql.conf" >/dev/null
  if has_spaces; then
    printf 'host %s all samenet trust\n' all replication | as_postgres tee -a "$(folder 1)/pg_hba.conf" >/dev/null
  fi
  certify 1
  # The first start has no standby to wait for. The setting comes with a reload: options of a first
  # start would be repeated at each restart.
  configure 1 ''
  start 1
  # For logs over several databases.
  sql 1 "CREATE DATABASE further"
  for node in $(seq 2 "$count"); do
    as_postgres "$bin/pg_basebackup" -h "$root" -p "$(port_of 1)" -U postgres \
      -D "$(folder "$node")" -X stream -c fast
    configure "$node" "$names"
    follow "$node" 1
    start "$node"
  done
  configure 1 "$names"
  sql 1 "SELECT pg_reload_conf()" >/dev/null
  [ "$count" = 1 ] || await $((count - 1)) \
    sql 1 "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'quorum'"
}

destroy() {
  [ -f "$root/nodes" ] || return 0
  for node in $(nodes); do
    thaw "$node" 2>/dev/null || true
    stop "$node"
  done
  ! has_spaces || remove_spaces
  rm -rf "$root"
}

kill_node() {
  local first
  first=$(head -1 "$(folder "$1")/postmaster.pid")
  # shellcheck disable=SC2046 # a list of IDs
  kill -9 $(family "$1") 2>/dev/null || true
  while kill -0 "$first" 2>/dev/null; do sleep 0.02; done
}

signal() { # shellcheck disable=SC2046
  kill "-$2" $(family "$1") 2>/dev/null || true
}
freeze() { signal "$1" STOP; }
thaw() { signal "$1" CONT; }

# Waits until a node streams from its new primary. If the old one's WAL ended within a record over two
# segments, a standby of version 15 stops with a PANIC there, and goes on once it is started again.
await_standby() { # node, primary
  for _ in $(seq 200); do
    [ "$(sql "$2" "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'")" = 0 ] || return 0
    as_postgres "$bin/pg_ctl" -D "$(folder "$1")" status >/dev/null 2>&1 || start "$1"
    sleep 0.05
  done
  echo "n$1 does not follow n$2" >&2
  return 1
}

# Both others are cut off from the primary first, so that nothing it sent is acknowledged any more.
# Only then are their positions compared. Both must be asked: the other one may be the half of the
# quorum that has the last commit.
promote() {
  local best='' best_lsn=-1 lsn others
  others=$(nodes | grep -v "^$1\$")
  for node in $others; do
    follow "$node" ''
    sql "$node" "SELECT pg_reload_conf()" >/dev/null
  done
  for node in $others; do
    await 0 sql "$node" "SELECT count(*) FROM pg_stat_wal_receiver"
    # One that has just started says how far it has come with what it has, and not how far that goes.
    await 1 sql "$node" "SELECT count(*) FROM pg_stat_activity
      WHERE backend_type = 'startup' AND wait_event = 'RecoveryRetrieveRetryInterval'"
    lsn=$(sql "$node" "SELECT greatest(
      pg_wal_lsn_diff(coalesce(pg_last_wal_receive_lsn(), '0/0'), '0/0'),
      pg_wal_lsn_diff(coalesce(pg_last_wal_replay_lsn(), '0/0'), '0/0'))::bigint")
    if [ "$lsn" -gt "$best_lsn" ]; then best=$node best_lsn=$lsn; fi
  done
  sql "$best" "SELECT pg_promote(true, 30)" >/dev/null
  for node in $others; do
    [ "$node" = "$best" ] && continue
    follow "$node" "$best"
    sql "$node" "SELECT pg_reload_conf()" >/dev/null
    await_standby "$node" "$best"
  done
  as_postgres rm -f "$(folder "$best")/standby.conf"
  echo "$best"
}

rejoin() {
  local node=$1 primary=$2
  stop "$node"
  if [ ! -f "$(folder "$node")/standby.signal" ]; then
    # It was a primary, and may hold what nobody else has. pg_rewind wants it shut down cleanly, so
    # it recovers alone once, where no commit waits for anybody.
    as_postgres "$bin/postgres" --single -F -D "$(folder "$node")" \
      -c synchronous_standby_names= postgres </dev/null >/dev/null 2>&1 || true
    # Before version 16 pg_rewind takes the primary's timeline from its last checkpoint.
    sql "$primary" CHECKPOINT >/dev/null
    as_postgres cp "$(folder "$node")/node.conf" "$root/keep"
    as_postgres "$bin/pg_rewind" -D "$(folder "$node")" \
      --source-server="host=$root port=$(port_of "$primary") user=postgres dbname=postgres" >/dev/null 2>&1
    as_postgres cp "$root/keep" "$(folder "$node")/node.conf"
  fi
  follow "$node" "$primary"
  start "$node"
}

status() {
  for node in $(nodes); do
    echo "n$node: $(sql "$node" "SELECT CASE WHEN pg_is_in_recovery()
      THEN 'standby ' || coalesce(pg_last_wal_receive_lsn()::text, '')
      ELSE 'primary ' || pg_current_wal_flush_lsn() || ' ' || coalesce((SELECT
        string_agg(application_name || ':' || state || ':' || sync_state, ' ')
        FROM pg_stat_replication), '') END" 2>&1 || true)"
  done
}

url() {
  local hosts=
  for node in $(nodes); do hosts="$hosts${hosts:+,}$(host_of "$node"):$(port_of "$node")"; done
  echo "postgres://postgres@$hosts/postgres"
}

case "${1:-}" in
  create) create "${2:-3}" "${3:-}" ;;
  status) status ;;
  url) url ;;
  sql) sql "$2" "$3" ;;
  kill) kill_node "$2" ;;
  start) start "$2" ;;
  promote) promote "$2" ;;
  rejoin) rejoin "$2" "$3" ;;
  freeze) freeze "$2" ;;
  thaw) thaw "$2" ;;
  netns) if has_spaces; then echo yes; else echo no; fi ;;
  cut) cut_off "$2" "$3" ;;
  heal) heal ;;
  destroy) destroy ;;
  *) sed -n '2,29s/^# \{0,1\}//p' "$0"; exit 64 ;;
esac
