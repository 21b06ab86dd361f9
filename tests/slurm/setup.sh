#!/usr/bin/env bash
# A Slurm cluster of one node, this machine, for tests/slurm/test_slurm.py. Needs root on Debian or Ubuntu; neither systemd nor
# cgroups, so that it works in a container. Everything lies in one folder, and nothing is changed in /etc/slurm.
#   tests/slurm/setup.sh        install what is missing and start
#   tests/slurm/setup.sh stop   stop
set -euo pipefail

FOLDER=${KDPL_SLURM:-/tmp/kdpl-slurm}
export SLURM_CONF=$FOLDER/slurm.conf

stop() {
    local name
    for name in slurmd slurmctld; do
        [ -f "$FOLDER/$name.pid" ] && kill "$(cat "$FOLDER/$name.pid")" 2>/dev/null
    done
    [ -f "$FOLDER/munged.pid" ] && kill "$(cat "$FOLDER/munged.pid")" 2>/dev/null
    return 0
}

if [ "${1:-}" = stop ]; then
    stop
    exit
fi
[ "$(id -u)" = 0 ] || { echo "error: run it as root: it installs packages and starts slurmd" >&2; exit 2; }

if ! { command -v slurmctld && command -v slurmd && command -v munged; } >/dev/null; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge
fi

stop
sleep 1
mkdir -p "$FOLDER"/{state,spool,munge}
chmod 755 "$FOLDER"
[ -s "$FOLDER/munge/munge.key" ] || (umask 077 && head -c 1024 /dev/urandom >"$FOLDER/munge/munge.key")
chown -R munge: "$FOLDER/munge"
chmod 700 "$FOLDER/munge"
mkdir -p /run/munge && chown munge: /run/munge && chmod 755 /run/munge # where the clients look for it

host=$(hostname -s)
cpus=$(env -u OMP_NUM_THREADS nproc) # nproc obeys it
memory=$(($(awk '/MemTotal/ {print $2}' /proc/meminfo) / 1024 * 9 / 10))
cat >"$FOLDER/cgroup.conf" <<CONF
CgroupPlugin=disabled
CONF
# AuthInfo: a requeued job waits until its credential has expired, two minutes by default.
cat >"$SLURM_CONF" <<CONF
ClusterName=kdpl
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=cred_expire=5
StateSaveLocation=$FOLDER/state
SlurmdSpoolDir=$FOLDER/spool
SlurmctldPidFile=$FOLDER/slurmctld.pid
SlurmdPidFile=$FOLDER/slurmd.pid
SlurmctldLogFile=$FOLDER/slurmctld.log
SlurmdLogFile=$FOLDER/slurmd.log
SlurmctldPort=16817
SlurmdPort=16818
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
MpiDefault=none
JobRequeue=1
KillWait=10
ReturnToService=2
SchedulerParameters=sched_interval=1,bf_interval=1
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cpus RealMemory=$memory State=UNKNOWN
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF

(cd / && runuser -u munge -- munged --force --key-file="$FOLDER/munge/munge.key" --pid-file="$FOLDER/munge/munged.pid" \
    --log-file="$FOLDER/munge/munged.log" --seed-file="$FOLDER/munge/munged.seed")
ln -sf munge/munged.pid "$FOLDER/munged.pid"
slurmctld -i
slurmd
for _ in $(seq 100); do
    if sinfo -h -o %T 2>/dev/null | grep -q -e idle -e mixed -e allocated; then
        echo "Slurm is up. For this shell: export SLURM_CONF=$SLURM_CONF"
        exit
    fi
    sleep 0.2
done
echo "error: the node did not come up; see $FOLDER/slurmctld.log and $FOLDER/slurmd.log" >&2
exit 1
