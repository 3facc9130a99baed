#!/bin/bash
@@SBATCH@@

set -u
python=@@PYTHON@@
nodes=$SLURM_JOB_NUM_NODES
head=$SLURMD_NODENAME

# a port range of the job's own, since others may use these nodes too; all ask for the token
base=$((20000 + SLURM_JOB_ID % 500 * 40))
export RAY_TMPDIR=/tmp/ray-$SLURM_JOB_ID
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
if [ -z "${RAY_AUTH_TOKEN:-}${RAY_AUTH_TOKEN_PATH:-}" ] && [ ! -s "$HOME/.ray/auth_token" ]; then
    RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
    export RAY_AUTH_TOKEN
fi

# the address by which its nodes know each other
address=127.0.0.1
if [ "$nodes" -gt 1 ]; then
    address=$(getent ahostsv4 "$head" | awk '$1 !~ /^127\./ {print $1; exit}')
    address=${address:-$(hostname -I | awk '{print $1}')}
fi

work=$(mktemp -d)
clean_up() {
    kill $(jobs -p) 2>/dev/null
    wait
    rm -rf -- "$work"
    srun --overlap --nodes="$nodes" --ntasks="$nodes" rm -rf -- "$RAY_TMPDIR" 2>/dev/null
}

# every node gives Ray what SLURM gave the job there
ray_start='exec "$0" -m ray.scripts.scripts start --block --disable-usage-stats \
    --num-cpus="$SLURM_CPUS_ON_NODE" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" "$@"'
ports=(
    --node-manager-port=$((base + 1)) --object-manager-port=$((base + 2))
    --runtime-env-agent-port=$((base + 3)) --dashboard-agent-listen-port=$((base + 4))
    --dashboard-agent-grpc-port=$((base + 5)) --metrics-export-port=$((base + 6))
)
step=(srun --overlap --cpus-per-task="${SLURM_CPUS_PER_TASK:-${SLURM_CPUS_ON_NODE:-1}}")
"${step[@]}" --nodes=1 --ntasks=1 --nodelist="$head" bash -c "$ray_start" "$python" \
    --head --node-ip-address="$address" --port="$base" "${ports[@]}" \
    --ray-client-server-port=$((base + 7)) \
    --dashboard-host=127.0.0.1 --dashboard-port=$((base + 8)) &
ray=$!
until "$python" -m ray.scripts.scripts health-check --address "$address:$base" 2>/dev/null; do
    if ! kill -0 "$ray" 2>/dev/null; then
        echo "Ray has not started on $head: its messages are above"
        clean_up
        exit 2
    fi
    sleep 1
done
if [ "$nodes" -gt 1 ]; then
    # a node whose Ray ends is one node less: the study goes on
    "${step[@]}" --nodes=$((nodes - 1)) --ntasks=$((nodes - 1)) --exclude="$head" --kill-on-bad-exit=0 \
        bash -c "$ray_start" "$python" --address="$address:$base" "${ports[@]}" &
fi

# the search space of the study, and the code that it names
base64 -d <<'FILES' | tar -xJ -C "$work"
@@FILES@@
FILES

time_is_over=no
cd "$work" || exit 2
RAY_ADDRESS=$address:$base "$python" @@PROGRAM@@ &
driver=$!
trap 'kill -TERM "$driver" 2>/dev/null' TERM INT
trap 'time_is_over=yes; kill -TERM "$driver" 2>/dev/null' USR1
# a signal ends `wait`, not the driver
while kill -0 "$driver" 2>/dev/null; do
    wait "$driver"
    code=$?
done
wait "$driver" 2>/dev/null
last=$?
if [ "$last" -ne 127 ]; then code=$last; fi

cd / || exit 2
clean_up
# a study that ended by itself meanwhile has nothing left to do
if [ "$time_is_over" = yes ] && [ "$code" -ge 128 ]; then
    echo "the time limit of the job is near: it is queued again, and the study goes on"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
