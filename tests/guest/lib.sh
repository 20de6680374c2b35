# What claims are written with.
out=/host/out
state=/var/lib/claims
groups=/sys/fs/cgroup/skiff
export KUBECONFIG=/etc/skiff/skiff.yaml HOME=/root
# An emulated processor takes its time.
patience=300s

fail() { echo "$*"; exit 1; }

# within SECONDS COMMAND...: tries until it succeeds.
within() {
    local seconds=$1 end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        if [ $SECONDS -ge $end ]; then fail "not within $seconds s: $*"; fi
        sleep 0.3
    done
}

# equal WHAT WANTED FOUND
equal() { [ "$2" = "$3" ] || fail "$1 is $3, not $2"; }

ready() { kubectl wait --for=condition=Ready "$@" --timeout=$patience >&2; }
gone() { kubectl delete --now --wait --timeout=$patience "$@" >&2; }
node_ready() { kubectl wait --for=condition=Ready node --all --timeout=5s; }
uid() { kubectl get pod "$1" -o jsonpath='{.metadata.uid}'; }
# id POD [NUMBER]: the ID of a container.
id() { kubectl get pod "$1" -o jsonpath="{.status.containerStatuses[${2:-0}].containerID}" | sed 's,.*//,,'; }
# Every container that runs, by pod and name.
ids() {
    kubectl get pods -A -o json | jq -r '.items[] | .metadata.name as $pod | .status.containerStatuses[]? |
        select(.state.running) | "\($pod) \(.name) \(.containerID) \(.restartCount)"' | sort
}
pod_group() { find $groups -type d -name "*$(uid "$1")" | head -n 1 | grep .; }
# Of a container, whichever runtime it is of.
container_group() { find $groups -type d -name "*$(id "$@")*" | head -n 1 | grep .; }
# used GROUP: microseconds of processor time.
used() { sed -n 's/^usage_usec //p' "$1/cpu.stat"; }
# busybox NAME COMMAND [MORE OF THE SPEC [MORE OF THE CONTAINER]]
busybox() {
    cat <<END
{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "$1"}, "spec": {"restartPolicy": "Never", ${3:-} "containers": [
 {"name": "main", "image": "busybox:1.36", ${4:-} "command": ["sh", "-c", "$2"]}]}}
END
}
# wasm NAME IMAGE [MORE OF THE CONTAINER]
wasm() {
    cat <<END
{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "$1"}, "spec": {"restartPolicy": "Never", "containers": [
 {"name": "main", "image": "skiff/wasm-$2:v1", ${3:-} "env": []}]}}
END
}
apply() { kubectl apply -f - >&2; }

# What the machine needs, once.
prepare() {
    hostname guest
    install -m 755 /host/skiff /host/kubectl /usr/local/bin/
    install -m 644 /host/systemd/*.service /etc/systemd/system/
    mkdir -p /etc/skiff /var/lib/registry
    cp -r /host/registry/. /var/lib/registry
    printf 'version: 0.1\nstorage: {filesystem: {rootdirectory: /var/lib/registry}}\nhttp: {addr: "127.0.0.1:5000"}\n' \
        >/etc/registry.yml
    printf '[Service]\nExecStart=/usr/bin/docker-registry serve /etc/registry.yml\n[Install]\nWantedBy=multi-user.target\n' \
        >/etc/systemd/system/registry.service
    printf 'mirrors:\n  docker.io:\n    endpoint:\n      - http://127.0.0.1:5000\n' >/etc/skiff/registries.yaml
    fallocate -l 256M /swap && chmod 600 /swap && mkswap -q /swap && swapon /swap
    echo '/swap none swap defaults 0 0' >>/etc/fstab
    # Debian's own unit wants passwords.
    systemctl disable --quiet --now docker-registry
    systemctl daemon-reload
    systemctl enable --quiet --now registry
    . /etc/os-release
    local version=v1
    if [ -e /sys/fs/cgroup/cgroup.controllers ]; then version=v2; fi
    echo "$PRETTY_NAME, Linux $(uname -r), cgroup $version, systemd $(systemctl --version | sed -n '1s/systemd \([0-9]*\).*/\1/p')," \
        "runc $(runc --version | sed -n '1s/.* //p')" >"$out/platform"
}
