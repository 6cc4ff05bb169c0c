"""One run on Kubernetes, as a JobSet: python -m launch.kubernetes NAME FILE.flags --image=IMAGE --processes=4 [-- more flags]

The image has the library and its programs installed. The flags file goes along as a ConfigMap. Process 0 is the pod NAME-workers-0-0,
where the others find it by its DNS name. --resource and --selector say what a pod gets and where it may run, for example
--resource=nvidia.com/gpu=8, or --resource=google.com/tpu=4 --selector=cloud.google.com/gke-tpu-accelerator=tpu-v5p-slice
--selector=cloud.google.com/gke-tpu-topology=2x2x4. --dry_run prints the command and the manifest. Give --workdir on storage that
outlives the pods, such as gs://.
"""
from __future__ import annotations

import json
import pathlib
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from fedjax_lab import spec

PORT = 8476
FOLDER = "/etc/fedjax_lab"


def manifest(name: str, image: str, processes: int, flags: str, more: list[str], resources: Mapping[str, str],
             selector: Mapping[str, str]) -> dict[str, Any]:
    """A List of the ConfigMap with the flags file and the JobSet that runs it.

    Args:
      name: of both objects, a DNS label.
      image: of the container;  processes: how many pods, one process each.
      flags: the text of the flags file;  more: flags after it.
      resources: what each pod gets;  selector: labels of the nodes.
    """
    command = ["python3", "-m", "experiments.train", f"--flagfile={FOLDER}/run.flags", *more,
               f"--coordinator={name}-workers-0-0.{name}:{PORT}", f"--processes={processes}", "--process_id=$(JOB_COMPLETION_INDEX)"]
    container = {
        "name": "train", "image": image, "command": command, "ports": [{"containerPort": PORT}],
        "volumeMounts": [{"name": "flags", "mountPath": FOLDER, "readOnly": True}], "resources": {"limits": dict(resources)},
    }
    pod = {
        "restartPolicy": "Never", "containers": [container], "nodeSelector": dict(selector),
        "volumes": [{"name": "flags", "configMap": {"name": name}}], "terminationGracePeriodSeconds": 120,
    }
    job = {"parallelism": processes, "completions": processes, "completionMode": "Indexed", "backoffLimit": 0, "template": {"spec": pod}}
    jobset = {
        "apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet", "metadata": {"name": name},
        "spec": {
            "network": {"enableDNSHostnames": True, "subdomain": name},
            "failurePolicy": {"maxRestarts": 0},
            "replicatedJobs": [{"name": "workers", "replicas": 1, "template": {"spec": job}}],
        },
    }
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"run.flags": flags}}
    return {"apiVersion": "v1", "kind": "List", "items": [config, jobset]}


def main() -> int:
    """Reads the command line, prints what is done and does it; 2 for a request that is not valid."""
    parser = spec.Arguments(prog="launch.kubernetes", usage="%(prog)s NAME FILE.flags --image=IMAGE --processes=N [options] [-- FLAGS]",
                            description=__doc__.split("\n\n")[0])
    parser.add_argument("name", help="of the JobSet")
    parser.add_argument("flagfile", metavar="FILE.flags", type=pathlib.Path, help="flags of experiments.train")
    parser.add_argument("--image", required=True, help="container image with the library")
    parser.add_argument("--processes", type=int, required=True, help="how many pods")
    parser.add_argument("--resource", action="append", default=[], metavar="NAME=AMOUNT", help="what each pod gets; repeatable")
    parser.add_argument("--selector", action="append", default=[], metavar="LABEL=VALUE", help="which nodes; repeatable")
    parser.add_argument("--dry_run", action="store_true", help="print the command and the manifest, and do nothing")
    cut = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    args = parser.parse_args(sys.argv[1:cut])
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", args.name):
        parser.error(f"'{args.name}' is no name for a JobSet; expected at most 40 small letters, digits and '-', a letter first")
    if args.processes < 1:
        parser.error(f"--processes={args.processes}: choose 1 or more")
    if not args.flagfile.is_file():
        parser.error(f"'{args.flagfile}' is no readable flags file")
    pairs = [_pairs(parser, name, getattr(args, name)) for name in ("resource", "selector")]
    text = json.dumps(manifest(args.name, args.image, args.processes, args.flagfile.read_text(), sys.argv[cut + 1 :], *pairs), indent=2)
    command = ["kubectl", "apply", "-f", "-"]
    print(f"{shlex.join(command)} <<'END'\n{text}\nEND", flush=True)
    status = 0 if args.dry_run else subprocess.run(command, input=text, text=True, check=False).returncode
    print(f"# watch: kubectl logs --follow job/{args.name}-workers-0\n# end: kubectl delete jobset/{args.name} configmap/{args.name}")
    return status


def _pairs(parser: spec.Arguments, name: str, items: list[str]) -> dict[str, str]:
    for item in items:
        if not item.partition("=")[2]:
            parser.error(f"--{name}={item}: expected NAME=VALUE")
    return dict(item.split("=", 1) for item in items)


if __name__ == "__main__":
    sys.exit(main())
