# Runs a job step that can be stopped and continued. The batch scripts of this folder source it.
#
# Slurm sends SIGUSR1 to the batch shell before the time limit (#SBATCH --signal=B:USR1@300) and, where the cluster is set up
# so, before preemption. It is passed on to the step: training saves after its update and ends. Then the job
# goes back into the queue, and the same command resumes the run.

wait_through() { # PID: waits for it whatever signals come, whose traps set interrupted=1; returns its status
    local before=0 status=0 code
    interrupted=1
    while [ "$interrupted" = 1 ]; do # a signal ends `wait`, not the process
        interrupted=0
        wait "$1" && code=0 || code=$?
        [ "$code" = 127 ] && [ "$before" = 1 ] || status=$code # 127 again: the wait before had seen the end
        before=1
    done
    return "$status"
}

run_stoppable() { # COMMAND ARGUMENT...: returns its status
    local stopped=0 status=0
    "$@" &
    local step=$!
    trap 'stopped=1; interrupted=1; scancel --signal=USR1 "$SLURM_JOB_ID"' USR1
    wait_through "$step" || status=$?
    trap - USR1
    if [ "$stopped" = 1 ] && [ "$status" = 0 ]; then
        echo "stopped with a save; job $SLURM_JOB_ID goes back into the queue"
        scontrol requeue "$SLURM_JOB_ID"
    fi
    return "$status"
}
