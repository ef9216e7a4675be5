# A node's launcher, and SIGUSR1 for what it starts. `bash scripts/slurm/node.sh torchrun ARGUMENT...`
#
# Where Slurm tracks processes by cgroup it sends a signal to this shell alone. The launcher must outlive SIGUSR1, which is for
# the processes of the training; those set their own handler, and a second one does them no harm.

. scripts/slurm/stoppable.sh
(trap "" USR1; exec "$@") &
launcher=$!
trap 'interrupted=1; pkill -USR1 -P "$launcher"' USR1
trap 'interrupted=1; kill -TERM "$launcher"' TERM
wait_through "$launcher"
