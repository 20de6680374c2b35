{{- /* Each of these is JSON, which is YAML that can stand anywhere. */ -}}

{{- define "common.selector" -}}
{{ dict "app.kubernetes.io/name" .Chart.Name "app.kubernetes.io/instance" .Release.Name | toJson }}
{{- end }}

{{- define "common.labels" -}}
{{- $own := dict "helm.sh/chart" (printf "%s-%s" .Chart.Name .Chart.Version) "app.kubernetes.io/managed-by" .Release.Service -}}
{{ merge $own (include "common.selector" . | fromJson) | toJson }}
{{- end }}

{{- define "common.meta" -}}
{{ dict "name" .Release.Name "labels" (include "common.labels" . | fromJson) | toJson }}
{{- end }}

{{- /* Of a pod and of a container: what the restricted Pod Security Standard asks for. */ -}}
{{- define "common.nobody" -}}
{{ dict "runAsNonRoot" true "runAsUser" 1000 "runAsGroup" 1000 "fsGroup" 2000 "seccompProfile" (dict "type" "RuntimeDefault") | toJson }}
{{- end }}

{{- define "common.restricted" -}}
{{ dict "allowPrivilegeEscalation" false "readOnlyRootFilesystem" true "capabilities" (dict "drop" (list "ALL")) | toJson }}
{{- end }}

{{- /* Shell functions of the charts' scripts. */ -}}
{{- define "common.functions" -}}
get() { for _ in $(seq 40); do timeout 3 wget -q -O - "$@" && return; sleep 0.3; done; echo "no answer: $*" >&2; return 1; }
is() { if [ "$1" != "$2" ]; then echo "'$1' is not '$2'" >&2; exit 1; fi; }
soon() { for _ in $(seq 40); do got=$(get "$1"); [ "$got" = "$2" ] && return; sleep 0.3; done; is "$got" "$2"; }
has() { case "$1" in *"$2"*) ;; *) echo "'$2' is not in '$1'" >&2; exit 1 ;; esac; }
token() { cat /var/run/secrets/kubernetes.io/serviceaccount/token; }
api() { path=$1; shift; get -U chart --header "Authorization: Bearer $(token)" "$@" "http://127.0.0.1:8001$path"; }
once() { path=$1; shift; wget -S -q -O - -U chart --header "Authorization: Bearer $(token)" "$@" "http://127.0.0.1:8001$path" 2>&1; }
post() { path=$1; body=$2; shift 2; once "$path" --header "Content-Type: application/json" --post-data "$body" "$@"; }
here=$(cat /var/run/secrets/kubernetes.io/serviceaccount/namespace 2>/dev/null || true)
{{- end }}

{{- /* The API server on 127.0.0.1:8001, for programs that speak no TLS; below /delete with the method that wget lacks. */ -}}
{{- define "common.api" -}}
name: api
image: nginx:1.29
restartPolicy: Always
startupProbe: {exec: {command: [wget, -q, -O, /dev/null, "http://127.0.0.1:8001/up"]}, periodSeconds: 1}
command:
- sh
- -c
- |
  cat > /tmp/nginx.conf <<'END'
  user root;
  pid /tmp/nginx.pid;
  error_log /dev/stderr warn;
  events {}
  http {
    access_log off;
    proxy_ssl_trusted_certificate /var/run/secrets/kubernetes.io/serviceaccount/ca.crt;
    proxy_ssl_verify on;
    proxy_ssl_name kubernetes.default.svc;
    server {
      listen 127.0.0.1:8001;
      location = /up { return 200; }
      location / { proxy_pass https://kubernetes.default.svc/; }
      location /delete/ { proxy_method DELETE; proxy_pass https://kubernetes.default.svc/; }
    }
  }
  END
  exec nginx -c /tmp/nginx.conf -g 'daemon off;'
{{- end }}

{{- /* A pod that `helm test` runs: of a chart, by a name, a script, and by an account where it asks the API. */ -}}
{{- define "common.test" -}}
{{- $chart := index . 0 -}}
---
apiVersion: v1
kind: Pod
metadata:
  name: {{ $chart.Release.Name }}-test-{{ index . 1 }}
  labels: {test-of: {{ $chart.Release.Name }}}
  annotations: {helm.sh/hook: test, helm.sh/hook-delete-policy: "before-hook-creation,hook-succeeded"}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  {{- if gt (len .) 3 }}
  serviceAccountName: {{ index . 3 }}
  initContainers:
  - {{ include "common.api" $chart | nindent 4 | trim }}
  {{- else }}
  automountServiceAccountToken: false
  {{- end }}
  containers:
  - name: ask
    image: busybox:1.36
    command: [sh, -ec, {{ printf "%s\n%s" (include "common.functions" $chart) (index . 2) | toJson }}]
{{ end }}
