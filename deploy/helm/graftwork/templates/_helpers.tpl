{{- define "graftwork.labels" -}}
app.kubernetes.io/name: graftwork
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "graftwork.select" -}}
app.kubernetes.io/name: graftwork
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "graftwork.pod" -}}
serviceAccountName: {{ .Release.Name }}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "graftwork.container" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}

{{- define "graftwork.coordinators" -}}
{{- $name := printf "%s-coordinator" .Release.Name -}}
{{- range $at := until (int .Values.coordinator.replicas) -}}
{{ if $at }},{{ end }}https://{{ $name }}-{{ $at }}.{{ $name }}:7700
{{- end -}}
{{- end }}

{{- /* Keys must be their user's alone, and a secret's volume is readable for its group: so they are copied. */ -}}
{{- define "graftwork.keys" -}}
- name: keys
  image: {{ .image }}
  imagePullPolicy: {{ .pull }}
  command: [/bin/sh, -ec, "install -m 600 /secrets/*/* /keys/"]
  {{- include "graftwork.container" . | nindent 2 }}
  resources:
    requests: {cpu: 10m, memory: 16Mi}
    limits: {cpu: 100m, memory: 32Mi}
  volumeMounts:
    {{- range .secrets }}
    - {name: secret-{{ . }}, mountPath: /secrets/{{ . }}, readOnly: true}
    {{- end }}
    - {name: keys, mountPath: /keys}
{{- end }}

{{- define "graftwork.traces" -}}
{{- with .Values.traces }}
- {name: OTEL_EXPORTER_OTLP_ENDPOINT, value: {{ . | quote }}}
{{- end }}
{{- end }}

{{- /* The queue: stages that could be trained now, and those that are. Without the latter a pool whose workers have taken
all there is would be made smaller while they train. */ -}}
{{- define "graftwork.queue" -}}
place=~"ready|running"
{{- end }}

{{- /* A worker that goes costs a checkpoint: not for a moment's quiet. */ -}}
{{- define "graftwork.pace" -}}
scaleDown:
  stabilizationWindowSeconds: 600
  policies: [{type: Pods, value: 1, periodSeconds: 120}]
{{- end }}
