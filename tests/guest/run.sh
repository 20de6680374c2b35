# What `cargo xtask guest` runs in its guest, at each boot, by the unit claims.service. The share is /host; what comes of the
# claims goes to /host/out. The guest switches itself off at the end.
. /host/guest/lib.sh

# claim KEY TEXT: judges the function KEY of claims.sh in a shell of its own.
claim() {
    local key=$1 text=$2 outcome=held figure
    if [ -s /host/only ] && ! grep -qw "$key" /host/only; then return; fi
    echo "claims: $text"
    figure=$(bash -Eeuo pipefail /host/guest/one.sh "$key" 2>"$out/$key.log") || outcome=failed
    if [ $outcome = failed ]; then look >"$out/$key.state" 2>&1; fi
    printf '%s\t%s\t%s\n' "$text" "$outcome" "$(printf '%s' "$figure" | tail -n 1 | tr '\t' ' ')" >>"$out/results"
}

# What there is to see after a claim has failed.
look() {
    kubectl get pods -A -o wide
    kubectl describe pods -A
    journalctl --no-pager -n 200 -u skiff-server -u skiff-pods
    ps axo pid,cgroup:80,args
    find /sys/fs/cgroup/skiff -type d
    mount
}

first_boot() {
    prepare
    claim check "\`skiff check\` finds nothing missing"
    claim server "the server starts by its unit, its node is ready"
    claim samples "samples/mixed: nginx and Wasm answer behind one Service"
    claim standing "pods that stand until the end: limited, on the host's network, one that ends with grace"
    claim limits "memory.max and cpu.max are what a pod and its container of either runtime ask for"
    claim weights "cpu.weight follows requests: node, classes, pod, Wasm hosts"
    claim fairness "a pod that asks for 1000m gets it beside BestEffort ones of both runtimes, which have one thread more than there are processors"
    claim oom "a child without memory ends the container: memory.oom.group, OOMKilled, exit 137"
    claim swap "memory.swap.max is 0, with swap in the machine; a Wasm host's group too"
    claim ended "an ended container's group goes at once, in a pod that lives"
    claim statistics "statistics: usageNanoCores and rssBytes of every container"
    claim privileged "a privileged pod leaves the options of the host's mounts as they are"
    claim apparmor "AppArmor: RuntimeDefault confines by a profile of Skiff's own, Unconfined does not"
    claim killed "kill -9 of the server: containers live on, and are taken over"
    claim restarted "systemctl restart of the server: containers live on, and are taken over"
    claim reloaded "systemctl daemon-reload changes no limit and no controller"
    ids >$state/before
    date +%s >$state/reboot
    echo second >$state/boot
    sync
    systemctl reboot
}

second_boot() {
    claim grace "at shutdown a pod gets its grace, and the machine does not wait for more"
    claim back "after a reboot every pod is back, those on the host's network too"
    claim nodes "\`skiff up --nodes 2\`: samples/mixed answers"
    claim down "no trace after \`down\`"
    claim readonly "a tree of control groups that is read-only fails \`check\` and the start"
    claim namespace "in a cgroup namespace of its own, whose root has processes, a cluster starts and its pods run"
    touch "$out/done"
    sync
    systemctl poweroff
}

touch "$out/booted"
mkdir -p $state
case $(cat $state/boot 2>/dev/null) in
    second) second_boot ;;
    *) first_boot ;;
esac
