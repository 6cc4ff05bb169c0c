#!/usr/bin/env bash
# One flags file on a single-host TPU VM: launch/tpu_vm.sh [--dry_run] NAME ZONE TYPE FILE.flags [OUT]
# Creates the machine, copies the checkout, runs, and collects runs/ into OUT (default: runs). The machine stays; the last line printed deletes it.
set -euo pipefail
dry=false
if [ "${1:-}" = --dry_run ]; then dry=true; shift; fi
if [ $# -lt 4 ] || [ $# -gt 5 ] || [ ! -r "$4" ]; then
  echo "error: '$*' is not valid; expected launch/tpu_vm.sh [--dry_run] NAME ZONE TYPE FILE.flags [OUT] with a readable FILE.flags" >&2
  exit 2
fi
name="$1" zone="$2" type="$3" flagfile="$4" out="${5:-runs}"
archive="${TMPDIR:-/var/tmp}/fedjax_lab-$name.tar.gz"

step() {
  printf '%q ' "$@" | sed 's/ $//'
  echo
  if [ "$dry" = false ]; then "$@"; fi
}
remote() { step gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --command="$1"; }
copy() { step gcloud compute tpus tpu-vm scp --recurse --zone="$zone" "$1" "$2"; }

flagfile="$(cd "$(dirname "$flagfile")" && pwd)/$(basename "$flagfile")"
case "$out" in /*) ;; *) out="$PWD/$out" ;; esac
cd "$(dirname "$0")/.."
step gcloud compute tpus tpu-vm create "$name" --zone="$zone" --accelerator-type="$type" --version="${TPU_VERSION:-tpu-ubuntu2204-base}"
step tar --create --gzip --file="$archive" --exclude=./.git --exclude=./runs .
copy "$archive" "$name:fedjax_lab.tar.gz"
copy "$flagfile" "$name:run.flags"
remote "mkdir -p fedjax_lab && tar -xzf fedjax_lab.tar.gz -C fedjax_lab && cd fedjax_lab && pip install -e '.[tpu]'"
remote "cd fedjax_lab && python3 -m experiments.train --flagfile=../run.flags"
step mkdir -p "$out"
copy "$name:fedjax_lab/runs/*" "$out"
echo "# delete the machine: gcloud compute tpus tpu-vm delete $name --zone=$zone"
