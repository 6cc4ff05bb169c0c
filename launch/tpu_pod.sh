#!/usr/bin/env bash
# One flags file on a TPU VM or a pod of them: launch/tpu_pod.sh [--dry_run] NAME ZONE TYPE FILE.flags [OUT]
# Creates the machines, copies the checkout to all workers, runs on all of them as one run, and collects runs/ of worker 0 into OUT (default: runs),
# unless the flags file has its --workdir on gs://. The machines stay; the last line printed deletes them.
set -euo pipefail
dry=false
if [ "${1:-}" = --dry_run ]; then dry=true; shift; fi
if [ $# -lt 4 ] || [ $# -gt 5 ] || [ ! -r "$4" ]; then
  echo "error: '$*' is not valid; expected launch/tpu_pod.sh [--dry_run] NAME ZONE TYPE FILE.flags [OUT] with a readable FILE.flags" >&2
  exit 2
fi
name="$1" zone="$2" type="$3" flagfile="$4" out="${5:-runs}"
archive="${TMPDIR:-/var/tmp}/fedjax_lab-$name.tar.gz"

step() {
  printf '%q ' "$@" | sed 's/ $//'
  echo
  if [ "$dry" = false ]; then "$@"; fi
}
remote() { step gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"; }
copy() { step gcloud compute tpus tpu-vm scp --recurse --zone="$zone" --worker="$1" "$2" "$3"; }

flagfile="$(cd "$(dirname "$flagfile")" && pwd)/$(basename "$flagfile")"
case "$out" in /*) ;; *) out="$PWD/$out" ;; esac
cd "$(dirname "$0")/.."
step gcloud compute tpus tpu-vm create "$name" --zone="$zone" --accelerator-type="$type" --version="${TPU_VERSION:-tpu-ubuntu2204-base}"
step tar --create --gzip --file="$archive" --exclude=./.git --exclude=./runs .
copy all "$archive" "$name:fedjax_lab.tar.gz"
copy all "$flagfile" "$name:run.flags"
remote "mkdir -p fedjax_lab && tar -xzf fedjax_lab.tar.gz -C fedjax_lab && cd fedjax_lab && pip install -e '.[tpu]'"
remote "cd fedjax_lab && python3 -m experiments.train --flagfile=../run.flags --processes=cluster"
if ! grep -q '^ *--workdir=gs://' "$flagfile"; then
  step mkdir -p "$out"
  copy 0 "$name:fedjax_lab/runs/*" "$out"
fi
echo "# delete the machines: gcloud compute tpus tpu-vm delete $name --zone=$zone"
