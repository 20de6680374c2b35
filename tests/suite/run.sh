#!/usr/bin/env bash
# Runs functions of upstream's command suite of kubectl (test/cmd of its module) against a server that is there already.
#
# From the environment: ROOT, a copy of the parts of upstream's tree that the suite reads; SERVER_PORT, where the server listens;
# LOGS, a folder for the output of each function; ONLY, the names of functions to run, between commas, or nothing for all.
set -o errexit -o nounset -o pipefail
cd "$ROOT"
export SECURE_API_PORT=$SERVER_PORT
# The version names Skiff, which kubectl would take for another one.
export ALLOW_SKEW=yes
source hack/lib/init.sh
source hack/lib/test.sh
source test/cmd/legacy-script.sh

# A function ends at its first failed line, in a shell of its own. What it said is kept apart from the verdict.
record_command() {
  local name=$1 code=0 began=$SECONDS
  if [[ -n "$ONLY" && ",$ONLY," != *",$name,"* ]]; then
    return 0
  fi
  set +o errexit +o nounset
  ("$@") >"$LOGS/$name.log" 2>&1 </dev/null
  code=$?
  set -o errexit -o nounset
  local verdict=passed
  if [[ $code -ne 0 ]]; then
    verdict=failed
  fi
  echo "$verdict $name $((SECONDS - began))" | tee -a "$LOGS/verdicts"
}

kube::util::ensure-temp-dir
trap 'stop-proxy; rm -rf "$KUBE_TEMP"' EXIT
export HOME=$KUBE_TEMP
kube::util::ensure-gnu-sed
CONTEXT=test
kubectl config set-credentials test-admin --token admin-token
kubectl config set-cluster local --insecure-skip-tls-verify --server "https://127.0.0.1:$SERVER_PORT"
kubectl config set-context "$CONTEXT" --user test-admin --cluster local
kubectl config use-context "$CONTEXT"
# Whoever is impersonated or asked about may do everything too.
kubectl create clusterrolebinding suite --clusterrole=cluster-admin --group=system:authenticated --group=system:unauthenticated --user=bob
kubectl create -f - <<NODE
{"kind": "Node", "apiVersion": "v1", "metadata": {"name": "127.0.0.1", "annotations": {"save-managers": "true"}},
 "status": {"capacity": {"memory": "1Gi"}}}
NODE
export SUPPORTED_RESOURCES=("*")
runTests
