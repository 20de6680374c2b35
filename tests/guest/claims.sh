# The claims: each a function that writes its figure, or fails.

check() {
    local said
    said=$(skiff check) || fail "$(grep MISSING <<<"$said" | head -n 1)"
    echo "$(grep -c ^ok <<<"$said") ok, $(grep -c ^warning <<<"$said" || true) warnings"
}

server() {
    local begun=$SECONDS
    systemctl enable --now skiff-server skiff-pods
    within 300 test -e $KUBECONFIG
    within 300 node_ready
    echo "$((SECONDS - begun)) s"
}

both_answer() {
    local url=$1 nginx= wasm= answer end=$((SECONDS + 120))
    until [ "$nginx" ] && [ "$wasm" ]; do
        if [ $SECONDS -ge $end ]; then fail "of nginx: ${nginx:-no}, of Wasm: ${wasm:-no}"; fi
        answer=$(curl -s --max-time 10 "$url" || true)
        case $answer in *nginx*) nginx=yes ;; *wasm*) wasm=yes ;; *) sleep 0.5 ;; esac
    done
}

mixed() {
    kubectl apply -f /host/samples/mixed >&2
    kubectl rollout status deployment/mixed-nginx --timeout=$patience >&2
    kubectl rollout status deployment/mixed-wasm --timeout=$patience >&2
    ready pod/pair
}

side_car_says_wasm() { kubectl logs pair -c side-car --tail=4 | grep wasm; }

samples() {
    local begun=$SECONDS
    mixed
    both_answer "http://$(kubectl get service mixed -o jsonpath='{.spec.clusterIP}')"
    within 60 side_car_says_wasm
    echo "$((SECONDS - begun)) s, images pulled"
}

standing() {
    local half='"resources": {"limits": {"cpu": "500m", "memory": "64Mi"}},'
    busybox limited 'while :; do sleep 1; done' '' "$half" | sed 's/Never/Always/' | apply
    wasm limited-wasm http "$half" | sed 's/Never/Always/' | apply
    busybox on-host 'while :; do sleep 1; done' '"hostNetwork": true,' | sed 's/Never/Always/' | apply
    busybox graceful 'trap \"date +%s > /kept/ended; exit 0\" TERM; while :; do sleep 1; done' \
        '"volumes": [{"name": "kept", "hostPath": {"path": "/var/lib/claims/graceful", "type": "DirectoryOrCreate"}}],' \
        '"volumeMounts": [{"name": "kept", "mountPath": "/kept"}],' | sed 's/Never/Always/' | apply
    ready pod/limited pod/limited-wasm pod/on-host pod/graceful
    echo "$(ids | wc -l) containers run"
}

limits() {
    local group
    for group in "$(container_group limited)" "$(pod_group limited)" "$(pod_group limited-wasm)"; do
        equal "memory.max of $group" 67108864 "$(cat "$group/memory.max")"
        equal "cpu.max of $group" "50000 100000" "$(cat "$group/cpu.max")"
    done
    equal "cpu.max of a Wasm container" "50000 100000" "$(cat "$(container_group limited-wasm)/cpu.max")"
    echo "64Mi: 67108864; 500m: 50000 100000"
}

weights() {
    busybox asks 'while :; do sleep 1; done' '' '"resources": {"requests": {"cpu": "1000m"}},' | apply
    ready pod/asks
    equal "cpu.weight of the pod that asks for 1000m" 100 "$(cat "$(pod_group asks)/cpu.weight")"
    equal "cpu.weight of besteffort" 1 "$(cat $groups/kubepods/besteffort/cpu.weight)"
    # Two processors: 2048 shares.
    equal "cpu.weight of kubepods" 174 "$(cat $groups/kubepods/cpu.weight)"
    local burstable hosts
    burstable=$(cat $groups/kubepods/burstable/cpu.weight)
    hosts=$(find $groups -maxdepth 1 -name '*wasm*' -exec cat {}/cpu.weight \; | head -n 1)
    gone pod/asks
    echo "1000m: 100; kubepods 174; besteffort 1; burstable $burstable; Wasm hosts $hosts"
}

# Three that never stop: what each gets of 2000 thousandths.
fairness() {
    local spin='while :; do :; done & while :; do :; done' begun
    # Those that are left little start first: beside the other they would take minutes for it.
    busybox idle "$spin" | apply
    wasm idle-wasm spin | apply
    ready pod/idle pod/idle-wasm
    busybox asks "$spin" '' '"resources": {"requests": {"cpu": "1000m"}},' | apply
    ready pod/asks
    local asks idle wasm
    asks=$(pod_group asks) idle=$(pod_group idle) wasm=$(container_group idle-wasm)
    local first=("$(used "$asks")" "$(used "$idle")" "$(used "$wasm")")
    begun=$(date +%s%N)
    sleep 15
    local ms=$((($(date +%s%N) - begun) / 1000000))
    local got=($((($(used "$asks") - first[0]) / ms)) $((($(used "$idle") - first[1]) / ms)) $((($(used "$wasm") - first[2]) / ms)))
    gone pod/asks
    gone pod/idle pod/idle-wasm
    local said="asks for 1000m: ${got[0]}m; BestEffort Linux: ${got[1]}m; BestEffort Wasm: ${got[2]}m"
    [ "${got[0]}" -ge 950 ] || fail "$said"
    echo "$said"
}

oom() {
    busybox oom 'tail /dev/zero; sleep 5; exit 0' '' '"resources": {"limits": {"memory": "32Mi"}},' | apply
    kubectl wait --for=jsonpath='{.status.phase}'=Failed pod/oom --timeout=$patience >&2
    local said
    said=$(kubectl get pod oom -o jsonpath='{.status.containerStatuses[0].state.terminated.reason} {.status.containerStatuses[0].state.terminated.exitCode}')
    equal "the end" "OOMKilled 137" "$said"
    gone pod/oom
    equal "memory.oom.group" 1 "$(cat "$(container_group limited)/memory.oom.group")"
    echo "$said"
}

swap() {
    [ "$(wc -l </proc/swaps)" -gt 1 ] || fail "the guest has no swap"
    equal "memory.swap.max of a container" 0 "$(cat "$(container_group limited)/memory.swap.max")"
    local host hosts
    hosts=$(find $groups/wasm -maxdepth 1 -mindepth 1 -type d)
    [ "$hosts" ] || fail "there is no Wasm host"
    for host in $hosts; do
        equal "memory.swap.max of $host" 0 "$(cat "$host/memory.swap.max")"
    done
    echo "0 of a container and of $(wc -l <<<"$hosts") hosts"
}

main_has_ended() {
    [ "$(kubectl get pod ended -o jsonpath='{.status.containerStatuses[?(@.name=="main")].state.terminated.exitCode}')" = 0 ]
}

ended() {
    busybox ended 'sleep 1' '' | sed 's/\]}}$/, {"name": "stays", "image": "busybox:1.36", "command": ["sleep", "1000"]}]}}/' | apply
    within 120 main_has_ended
    local group
    group=$(pod_group ended)
    [ "$(find "$group" -mindepth 1 -maxdepth 1 -type d | wc -l)" = 1 ] || fail "$(ls -d "$group"/*/ | wc -l) groups, one container runs"
    gone pod/ended
    echo "one group is left of two"
}

statistics() {
    local path said=
    path=/api/v1/nodes/$(kubectl get nodes -o jsonpath='{.items[0].metadata.name}')/proxy/stats/summary
    kubectl get --raw "$path" >/dev/null
    sleep 3
    said=$(kubectl get --raw "$path" | jq -r '[.pods[].containers[]] | "\(length) containers, " +
        "usageNanoCores of \([.[] | select(.cpu.usageNanoCores != null)] | length), " +
        "rssBytes of \([.[] | select((.memory.rssBytes // 0) > 0)] | length)"')
    local n
    read -r -a n <<<"$(tr -dc '0-9 ' <<<"$said")"
    if [ "${n[0]}" -lt 5 ] || [ "${n[0]}" != "${n[1]}" ] || [ "${n[0]}" != "${n[2]}" ]; then fail "$said"; fi
    echo "$said"
}

# Of what there is once in a machine, however often it is mounted.
options() { findmnt -rn -o TARGET,FSTYPE,OPTIONS -t cgroup2,sysfs,proc,devpts,mqueue,debugfs,tracefs,securityfs,bpf,efivarfs,pstore; }

privileged() {
    options >$state/options
    busybox privileged 'sleep 1000' '"hostPID": true, "hostIPC": true,' '"securityContext": {"privileged": true},' | apply
    ready pod/privileged
    options | diff $state/options - || fail "while it runs: $(options | grep cgroup2)"
    gone pod/privileged
    options | diff $state/options - || fail "after it: $(options | grep cgroup2)"
    findmnt -rn -o OPTIONS /sys/fs/cgroup
}

apparmor() {
    # Who has the capability may mount, and so may not but for the profile.
    local may='"capabilities": {"add": ["SYS_ADMIN"]}'
    busybox confined 'sleep 1000' '' '"securityContext": {'"$may"'},' | apply
    busybox unconfined 'sleep 1000' '' '"securityContext": {"appArmorProfile": {"type": "Unconfined"}, '"$may"'},' | apply
    ready pod/confined pod/unconfined
    local said
    said=$(kubectl exec confined -- cat /proc/1/attr/current)
    equal "the profile" "skiff-default (enforce)" "$said"
    equal "the other's" unconfined "$(kubectl exec unconfined -- cat /proc/1/attr/current)"
    kubectl exec unconfined -- mount -t tmpfs none /tmp >&2
    if kubectl exec confined -- mount -t tmpfs none /tmp >&2; then fail "it may mount"; fi
    gone pod/confined pod/unconfined
    echo "$said"
}

readonly() {
    local said
    if said=$(unshare -m sh -c 'mount -o remount,bind,ro /sys/fs/cgroup && skiff check'); then fail "check found nothing"; fi
    grep -q '^MISSING *cgroup' <<<"$said" || fail "check did not say so: $(grep MISSING <<<"$said" | head -n 1)"
    if said=$(unshare -m sh -c 'mount -o remount,bind,ro /sys/fs/cgroup && timeout 60 skiff up --name ro' 2>&1); then
        skiff down --name ro >&2
        fail "a cluster started"
    fi
    skiff down --name ro >&2 || true
    grep -i 'read-only file system' <<<"$said" | tail -n 1
}

namespace() {
    # As in a privileged container: the namespace's root is a group with processes in it.
    systemd-run --quiet --wait --pipe --unit=own-namespace -p Delegate=yes unshare -C -m bash -Eeuc '
        umount /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup
        skiff up --name own
        export KUBECONFIG=$PWD/own.kubeconfig
        skiff kubeconfig --name own >own.kubeconfig
        kubectl run one --image=busybox:1.36 --restart=Never -- true
        kubectl wait --for=jsonpath={.status.phase}=Succeeded pod/one --timeout=300s
        skiff down --name own' >&2
    echo "one pod ran"
}

same_containers() { diff $state/ids <(ids) >&2; }

killed() {
    ids >$state/ids
    systemctl kill --kill-whom=main --signal=KILL skiff-server
    sleep 3
    local begun=$SECONDS
    within 300 node_ready
    within 60 same_containers
    echo "$(wc -l <$state/ids) containers, ready again after $((SECONDS - begun)) s"
}

restarted() {
    ids >$state/ids
    local begun=$SECONDS
    systemctl restart skiff-server
    within 300 node_ready
    within 60 same_containers
    echo "$(wc -l <$state/ids) containers, $((SECONDS - begun)) s"
}

# Every limit and every controller of Skiff's groups.
figures() {
    local file
    find $groups -name cgroup.subtree_control -o -name memory.max -o -name cpu.max -o -name cpu.weight -o -name pids.max | sort |
        while read -r file; do echo "$file: $(cat "$file")"; done
}

reloaded() {
    figures >$state/figures
    systemctl daemon-reload
    sleep 5
    figures | diff $state/figures - >&2 || fail "figures differ"
    echo "$(wc -l <$state/figures) figures"
}

grace() {
    local began boot
    began=$(cat $state/reboot)
    boot=$(($(date +%s) - $(cut -d. -f1 /proc/uptime)))
    [ -e $state/graceful/ended ] || fail "its pod was not asked to end"
    [ "$(cat $state/graceful/ended)" -ge "$began" ] || fail "its pod ended before"
    local said
    said="asked to end after $(($(cat $state/graceful/ended) - began)) s, booting again after $((boot - began)) s"
    [ $((boot - began)) -lt 60 ] || fail "$said"
    echo "$said"
}

all_back() {
    [ "$(ids | wc -l)" = "$(wc -l <$state/before)" ] &&
        ! ids | cut -d' ' -f3 | grep -qFf <(cut -d' ' -f3 $state/before)
}

back() {
    within 300 systemctl is-active skiff-server
    within 300 all_back
    ready pod --all
    local now active
    now=$(cut -d. -f1 /proc/uptime)
    active=$(($(systemctl show -p ActiveEnterTimestampMonotonic --value skiff-server) / 1000000))
    both_answer "http://$(kubectl get service mixed -o jsonpath='{.spec.clusterIP}')"
    echo "$(wc -l <$state/before) containers, $((now - active)) s after the server's start"
}

# What of Skiff a machine has, outside of its own directories for data.
traces() {
    find /run/skiff /var/lib/skiff/clusters -mindepth 1 ! -path /run/skiff/clusters 2>/dev/null || true
    find /sys/fs/cgroup -type d -name 'skiff*'
    findmnt -rn -o TARGET | grep skiff || true
    ip -o link | cut -d: -f2
    ip netns list
    nft list tables
    pgrep -a skiff || true
    ls /sys/kernel/security/apparmor/policy/profiles 2>/dev/null | grep skiff || true
}

nodes() {
    systemctl disable --now skiff-server skiff-pods 2>&2
    skiff teardown
    traces >$state/traces
    local begun=$SECONDS
    skiff up --nodes 2 >&2
    skiff kubeconfig --name skiff >$state/up.kubeconfig
    export KUBECONFIG=$state/up.kubeconfig
    mixed
    both_answer "$(skiff service url mixed --name skiff)"
    echo "$(kubectl get nodes --no-headers | wc -l) nodes, $((SECONDS - begun)) s"
}

down() {
    skiff down >&2
    traces | diff $state/traces - >&2 || fail "something is left"
    # The server's own, which was taken away before.
    if grep -E 'cgroup|/run/skiff/.*(ns|shim)' $state/traces >&2; then fail "the node left something"; fi
    echo "as before"
}
