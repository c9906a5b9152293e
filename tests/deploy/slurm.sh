#!/bin/bash
# A Slurm of one's own on loopback: munge, the controller and two nodes, below a folder, without systemd.
#     slurm.sh start FOLDER PORT        prints nothing; both nodes are idle when it returns, else it fails
#     slurm.sh stop FOLDER
# Ports are PORT, PORT+1 and PORT+2. Everything runs as root but munge.
set -eu
folder=$2

start() {
    local port=$1 memory
    mkdir -p "$folder"/{state,spool-one,spool-two,munge,etc,run,socket}
    chmod 755 "$folder" "$folder/run"
    dd if=/dev/urandom of="$folder/munge/key" bs=1024 count=1 status=none
    chmod 400 "$folder/munge/key"
    chmod 700 "$folder/munge"
    chown -R munge:munge "$folder/munge" "$folder/socket"
    memory=$(slurmd -C | sed -n 's/.*RealMemory=\([0-9]*\).*/\1/p')
    touch "$folder/etc/cgroup.conf"
    cat > "$folder/etc/slurm.conf" <<CONFIGURATION
ClusterName=graftwork
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/socket/munge
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0,sched_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SlurmctldPidFile=$folder/run/slurmctld.pid
SlurmdPidFile=$folder/run/slurmd-%n.pid
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool-%n
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd-%n.log
KillWait=10
NodeName=one NodeHostname=localhost NodeAddr=127.0.0.1 Port=$((port + 1)) CPUs=$(nproc) RealMemory=$memory State=UNKNOWN
NodeName=two NodeHostname=localhost NodeAddr=127.0.0.1 Port=$((port + 2)) CPUs=$(nproc) RealMemory=$memory State=UNKNOWN
PartitionName=debug Nodes=one,two Default=YES MaxTime=30 State=UP
CONFIGURATION
    export SLURM_CONF=$folder/etc/slurm.conf
    launch munged setpriv --reuid=munge --regid=munge --clear-groups /usr/sbin/munged --foreground \
        --key-file="$folder/munge/key" --socket="$folder/socket/munge" --pid-file="$folder/socket/pid" \
        --log-file="$folder/munge/log" --seed-file="$folder/munge/seed"
    for _ in $(seq 100); do [ -S "$folder/socket/munge" ] && break; sleep 0.05; done
    launch slurmctld /usr/sbin/slurmctld -D -f "$SLURM_CONF"
    launch one /usr/sbin/slurmd -D -N one -f "$SLURM_CONF"
    launch two /usr/sbin/slurmd -D -N two -f "$SLURM_CONF"
    for _ in $(seq 200); do
        [ "$(sinfo -h -t idle -o %D 2>/dev/null)" = 2 ] && return
        sleep 0.1
    done
    echo "Slurm did not start:" >&2
    tail -n 5 "$folder"/*.log "$folder"/*.out >&2
    exit 1
}

launch() {
    local name=$1
    shift
    setsid "$@" > "$folder/$name.out" 2>&1 < /dev/null &
    echo $! > "$folder/run/$name.own"
}

stop() {
    local name pid
    for name in one two slurmctld munged; do
        pid=$(cat "$folder/run/$name.own" 2>/dev/null) || continue
        kill "$pid" 2>/dev/null || continue
        for _ in $(seq 50); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
        kill -9 "$pid" 2>/dev/null || true
    done
}

case $1 in
    start) start "$3" ;;
    stop) stop ;;
esac
