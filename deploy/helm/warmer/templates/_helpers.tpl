{{- define "warmer.fullname" -}}
{{- if contains "warmer" .Release.Name }}{{ .Release.Name | trunc 24 | trimSuffix "-" }}{{ else }}{{ printf "%s-warmer" .Release.Name | trunc 24 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "warmer.selector" -}}
app.kubernetes.io/name: warmer
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "warmer.labels" -}}
{{ include "warmer.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "warmer.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}{{ .Values.serviceAccount.name | default (include "warmer.fullname" .) }}{{ else }}{{ .Values.serviceAccount.name | default "default" }}{{ end }}
{{- end }}

{{- define "warmer.image" -}}
{{- if .Values.image.digest }}{{ .Values.image.repository }}@{{ .Values.image.digest }}{{ else }}{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{- define "warmer.claim" -}}
{{- .Values.persistence.existingClaim | default (printf "%s-models" (include "warmer.fullname" .)) }}
{{- end }}

{{- define "warmer.lock" -}}
{{- $lease := "" }}
{{- with .Values.lock.leaseSeconds }}{{ $lease = printf "?lease=%v" . }}{{ end }}
{{- if eq .Values.lock.mechanism "k8s" }}k8s://{{ .Release.Namespace }}/{{ .Values.lock.prefix }}{{ $lease }}
{{- else if eq .Values.lock.mechanism "s3" }}s3://{{ required "lock.bucket is needed with lock.mechanism s3" .Values.lock.bucket }}/{{ .Values.lock.prefix }}{{ $lease }}
{{- else }}file{{ $lease }}{{ end }}
{{- end }}

{{- /* The words after `vllm serve MODEL`: of a model of modelSpec. The handoff holds all that the server is
given: one with further arguments is not harvested. */}}
{{- define "warmer.serveArgs" -}}
{{- $words := list }}
{{- with .model.vllmConfig }}
{{- with .maxModelLen }}{{ $words = concat $words (list "--max-model-len" (printf "%v" .)) }}{{ end }}
{{- with .dtype }}{{ $words = concat $words (list "--dtype" .) }}{{ end }}
{{- with .tensorParallelSize }}{{ $words = concat $words (list "--tensor-parallel-size" (printf "%v" .)) }}{{ end }}
{{- with .pipelineParallelSize }}{{ $words = concat $words (list "--pipeline-parallel-size" (printf "%v" .)) }}{{ end }}
{{- with .extraArgs }}{{ $words = concat $words . }}{{ end }}
{{- end }}
{{- toJson (concat $words (list "--host" "0.0.0.0" "--port" (printf "%v" .root.Values.servingEngineSpec.containerPort))) }}
{{- end }}

{{- /* A GPU for each rank, in the server and in whatever builds its kernels: 0 is none. */}}
{{- define "warmer.gpus" -}}
{{- $config := .vllmConfig | default dict }}
{{- $ranks := mul ($config.tensorParallelSize | default 1) ($config.pipelineParallelSize | default 1) | int }}
{{- if hasKey . "requestGPU" }}
{{- if and (gt (int .requestGPU) 0) (lt (int .requestGPU) $ranks) }}
{{- fail (printf "model %s: requestGPU is %d, and tensorParallelSize x pipelineParallelSize is %d: each rank needs a GPU" .name (int .requestGPU) $ranks) }}
{{- end }}
{{- int .requestGPU }}
{{- else }}{{ if gt $ranks 1 }}{{ $ranks }}{{ else }}0{{ end }}{{ end }}
{{- end }}

{{- define "warmer.resources" -}}
{{- $gpus := include "warmer.gpus" . | trim | int -}}
requests:
  cpu: {{ .requestCPU | quote }}
  memory: {{ .requestMemory | quote }}
  {{- with $gpus }}
  nvidia.com/gpu: {{ . | quote }}
  {{- end }}
limits:
  memory: {{ .limitMemory | default .requestMemory | quote }}
  {{- with $gpus }}
  nvidia.com/gpu: {{ . | quote }}
  {{- end }}
{{- end }}

{{- /* The variables that every container of a pod gets. */}}
{{- define "warmer.env" -}}
- {name: HOME, value: /tmp}
- {name: USER, value: warmer}
{{- with .root.Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- with .model.env }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "warmer.mounts" -}}
- {name: models, mountPath: {{ .root.Values.persistence.mountPath | quote }}{{ if .readOnly }}, readOnly: true{{ end }}}
- {name: warm, mountPath: {{ .root.Values.warmDir.mountPath | quote }}}
- {name: tmp, mountPath: /tmp}
- {name: shm, mountPath: /dev/shm}
{{- with .root.Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "warmer.trustedMount" -}}
{{- if .Values.warmer.trustedKeys.configMap }}
- {name: trusted-keys, mountPath: /etc/warmer/trusted, readOnly: true}
{{- end }}
{{- end }}

{{- define "warmer.signingMount" -}}
{{- if .Values.warmer.signingKey.secret }}
- {name: signing-key, mountPath: /etc/warmer/signing, readOnly: true}
{{- end }}
{{- end }}

{{- define "warmer.models" -}}
- name: models
  {{- if .Values.persistence.hostPath }}
  hostPath: {path: {{ .Values.persistence.hostPath | quote }}, type: Directory}
  {{- else if .Values.persistence.enabled }}
  persistentVolumeClaim: {claimName: {{ include "warmer.claim" . }}}
  {{- else }}
  emptyDir: {}
  {{- end }}
{{- end }}

{{- define "warmer.volumes" -}}
{{ include "warmer.models" . }}
- name: warm
  emptyDir:
    sizeLimit: {{ .Values.warmDir.sizeLimit | quote }}
    {{- with .Values.warmDir.medium }}
    medium: {{ . }}
    {{- end }}
- name: tmp
  emptyDir: {}
- name: shm
  emptyDir: {medium: Memory, sizeLimit: {{ .Values.servingEngineSpec.shmSize | quote }}}
{{ include "warmer.keyVolumes" . }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "warmer.keyVolumes" -}}
{{- with .Values.warmer.trustedKeys }}{{ if .configMap }}
- name: trusted-keys
  configMap: {name: {{ .configMap }}, items: [{key: {{ .key }}, path: keys.pub}]}
{{- end }}{{ end }}
{{- with .Values.warmer.signingKey }}{{ if .secret }}
- name: signing-key
  secret: {secretName: {{ .secret }}, defaultMode: 288, items: [{key: {{ .key }}, path: key}]}
{{- end }}{{ end }}
{{- end }}

{{- /* The container that fills, restores and hands off. */}}
{{- define "warmer.prefill" -}}
name: warmer
image: {{ include "warmer.image" .root }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
command: [/opt/warmer/entrypoints/init]
args: {{ concat (list "--") (include "warmer.serveArgs" . | fromJsonArray) | toJson }}
envFrom:
  - configMapRef: {name: {{ include "warmer.fullname" .root }}-{{ .model.name }}}
env:
  - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
  {{- with .model.hf_token }}
  - {name: HF_TOKEN, valueFrom: {secretKeyRef: {name: {{ .secretName }}, key: {{ .secretKey }}}}}
  {{- end }}
  {{- include "warmer.env" . | nindent 2 }}
volumeMounts:
  {{- include "warmer.mounts" . | nindent 2 }}
  {{- include "warmer.trustedMount" .root | nindent 2 }}
  {{- include "warmer.signingMount" .root | nindent 2 }}
resources:
  {{- with .root.Values.warmer.resources }}
  {{- toYaml . | nindent 2 }}
  {{- else }}
  {{- include "warmer.resources" .model | nindent 2 }}
  {{- end }}
securityContext: {{ toJson .root.Values.securityContext }}
terminationMessagePolicy: FallbackToLogsOnError
{{- end }}

{{- /* Whether the sidecar publishes: only then it signs, and looks for the server's secret. */}}
{{- define "warmer.harvests" -}}
{{- if and .Values.sidecar.enabled (ne .Values.warmer.compile "never") (ne (toString .Values.sidecar.harvestMost) "0") }}true{{ end }}
{{- end }}

{{- /* Beside the server: a native sidecar, after the prefill. No startup probe: the server would wait for it. */}}
{{- define "warmer.sidecar" -}}
{{- $v := .root.Values -}}
name: warmer-sidecar
restartPolicy: Always
image: {{ include "warmer.image" .root }}
imagePullPolicy: {{ $v.image.pullPolicy }}
command: [/opt/warmer/entrypoints/sidecar]
env:
  - {name: WARMER_VOLUME, value: {{ $v.persistence.mountPath | quote }}}
  - {name: WARMER_WARM_DIR, value: {{ $v.warmDir.mountPath | quote }}}
  - {name: WARMER_LOCK, value: {{ include "warmer.lock" .root | quote }}}
  - {name: WARMER_HTTP_PORT, value: {{ $v.metrics.port | quote }}}
  {{- if not (kindIs "invalid" $v.sidecar.quiet) }}
  - {name: WARMER_QUIET, value: {{ $v.sidecar.quiet | quote }}}
  {{- end }}
  {{- if not (kindIs "invalid" $v.sidecar.harvestEvery) }}
  - {name: WARMER_HARVEST_EVERY, value: {{ $v.sidecar.harvestEvery | quote }}}
  {{- end }}
  {{- if not (kindIs "invalid" $v.sidecar.harvestMost) }}
  - {name: WARMER_HARVEST_MOST, value: {{ $v.sidecar.harvestMost | quote }}}
  {{- end }}
  {{- if not (kindIs "invalid" $v.warmer.retry) }}
  - {name: WARMER_RETRY, value: {{ $v.warmer.retry | quote }}}
  {{- end }}
  {{- with $v.warmer.remote }}
  - {name: WARMER_REMOTE, value: {{ . | quote }}}
  {{- end }}
  {{- if $v.warmer.trustedKeys.configMap }}
  - {name: WARMER_TRUSTED_KEYS, value: /etc/warmer/trusted/keys.pub}
  {{- end }}
  {{- if include "warmer.harvests" .root }}
  {{- if $v.warmer.signingKey.secret }}
  - {name: WARMER_SIGNING_KEY, value: /etc/warmer/signing/key}
  {{- end }}
  # A file that holds the server's secret is not published.
  {{- include "warmer.apiKey" .root | nindent 2 }}
  {{- end }}
  - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
  {{- include "warmer.env" . | nindent 2 }}
ports: [{name: metrics, containerPort: {{ $v.metrics.port }}}]
livenessProbe: {{ merge (dict "httpGet" (dict "path" "/livez" "port" "metrics")) $v.sidecar.livenessProbe | toJson }}
volumeMounts:
  {{- include "warmer.mounts" . | nindent 2 }}
  {{- include "warmer.trustedMount" .root | nindent 2 }}
  {{- if include "warmer.harvests" .root }}
  {{- include "warmer.signingMount" .root | nindent 2 }}
  {{- end }}
resources: {{ toJson $v.sidecar.resources }}
securityContext: {{ toJson $v.securityContext }}
terminationMessagePolicy: FallbackToLogsOnError
{{- end }}

{{- define "warmer.apiKey" -}}
{{- with .Values.servingEngineSpec.vllmApiKey }}{{ if .secretName }}
- {name: VLLM_API_KEY, valueFrom: {secretKeyRef: {name: {{ .secretName }}, key: {{ .secretKey }}}}}
{{- end }}{{ end }}
{{- end }}

{{- define "warmer.placing" -}}
serviceAccountName: {{ include "warmer.serviceAccountName" . }}
automountServiceAccountToken: {{ eq .Values.lock.mechanism "k8s" }}
securityContext: {{ toJson .Values.podSecurityContext }}
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{ toJson . }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector: {{ toJson . }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{ toJson . }}
{{- end }}
{{- with .Values.affinity }}
affinity: {{ toJson . }}
{{- end }}
{{- with .Values.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- end }}

{{- /* What tells a model's Jobs apart: one for each kind of GPU, where kinds are named. */}}
{{- define "warmer.jobName" -}}
{{- if .arch.name }}{{ printf "%s-%s" .model.name .arch.name | trunc 18 | trimSuffix "-" }}-{{ printf "%s/%s" .model.name .arch.name | sha256sum | trunc 8 }}
{{- else }}{{ .model.name }}{{ end }}
{{- end }}

{{- /* A Job's spec that fills the volume for one model: once, or on each node's own disk. */}}
{{- define "warmer.jobSpec" -}}
{{- $values := deepCopy .root.Values }}
{{- with .arch.nodeSelector }}{{ $_ := set $values "nodeSelector" (merge (deepCopy .) $values.nodeSelector) }}{{ end }}
{{- if .root.Values.job.nodes }}
{{- $labels := dict "app.kubernetes.io/instance" .root.Release.Name "app.kubernetes.io/component" "prefill" "prefill" (include "warmer.jobName" .) }}
{{- $apart := dict "labelSelector" (dict "matchLabels" $labels) "topologyKey" "kubernetes.io/hostname" }}
{{- $_ := set $values "affinity" (merge (dict "podAntiAffinity" (dict "requiredDuringSchedulingIgnoredDuringExecution" (list $apart))) $values.affinity) }}
completionMode: Indexed          # one pod on each of so many nodes, all at once
completions: {{ .root.Values.job.nodes }}
parallelism: {{ .root.Values.job.nodes }}
{{- end }}
backoffLimit: {{ .root.Values.job.backoffLimit }}
activeDeadlineSeconds: {{ .root.Values.job.activeDeadlineSeconds }}
ttlSecondsAfterFinished: {{ .root.Values.job.ttlSecondsAfterFinished }}
podFailurePolicy:
  rules:
    - action: Ignore               # the node went away
      onPodConditions: [{type: DisruptionTarget, status: "True"}]
    - action: FailJob              # 2: usage; it would be the same again
      onExitCodes: {containerName: warmer, operator: In, values: [2]}
template:
  metadata:
    labels:
      {{- include "warmer.labels" .root | nindent 6 }}
      app.kubernetes.io/component: prefill
      prefill: {{ include "warmer.jobName" . }}
  spec:
    restartPolicy: Never
    {{- include "warmer.placing" (dict "Values" $values "Release" .root.Release "Chart" .root.Chart) | nindent 4 }}
    containers:
      - {{- include "warmer.prefill" . | nindent 8 }}
    volumes:
      {{- include "warmer.volumes" .root | nindent 6 }}
{{- end }}
