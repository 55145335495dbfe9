{{- /* Names begin with it. A Service's may begin with no digit and hold no dot, as a release's may; a long one is
cut, and two that begin alike stay apart. */}}
{{- define "warmer.fullname" -}}
{{- $name := .Release.Name | replace "." "-" }}
{{- if regexMatch "^[0-9]" $name }}{{ $name = printf "warmer-%s" $name }}
{{- else if not (contains "warmer" $name) }}{{ $name = printf "%s-warmer" $name }}{{ end }}
{{- if gt (len $name) 24 }}{{ $name = printf "%s-%s" ($name | trunc 17 | trimSuffix "-") (.Release.Name | sha256sum | trunc 6) }}{{ end }}
{{- $name }}
{{- end }}

{{- /* A number as it was written: Go would say 1.048576e+06. */}}
{{- define "warmer.text" -}}
{{- if kindIs "string" . }}{{ . }}{{ else }}{{ toJson . }}{{ end }}
{{- end }}

{{- define "warmer.selector" -}}
app.kubernetes.io/name: warmer
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "warmer.labels" -}}
{{ include "warmer.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | quote }}
{{- end }}

{{- /* A pod's: those that selectors rely on win over podLabels. */}}
{{- define "warmer.podLabels" -}}
{{- merge (include "warmer.labels" .root | fromYaml) .own (.root.Values.podLabels | default dict) | toYaml }}
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
{{- with .Values.lock.leaseSeconds }}{{ $lease = printf "?lease=%d" (int .) }}{{ end }}
{{- if eq .Values.lock.mechanism "k8s" }}k8s://{{ .Release.Namespace }}/{{ .Values.lock.prefix }}{{ $lease }}
{{- else if eq .Values.lock.mechanism "s3" }}s3://{{ required "lock.bucket is needed with lock.mechanism s3" .Values.lock.bucket }}/{{ .Values.lock.prefix }}{{ $lease }}
{{- else }}file{{ $lease }}{{ end }}
{{- end }}

{{- /* The words after `vllm serve MODEL`: of a model of modelSpec. The handoff holds all that the server is
given: one with further arguments is not harvested. */}}
{{- define "warmer.serveArgs" -}}
{{- $words := list }}
{{- with .model.vllmConfig }}
{{- with .maxModelLen }}{{ $words = concat $words (list "--max-model-len" (toJson .)) }}{{ end }}
{{- with .dtype }}{{ $words = concat $words (list "--dtype" .) }}{{ end }}
{{- with .tensorParallelSize }}{{ $words = concat $words (list "--tensor-parallel-size" (toJson .)) }}{{ end }}
{{- with .pipelineParallelSize }}{{ $words = concat $words (list "--pipeline-parallel-size" (toJson .)) }}{{ end }}
{{- with .extraArgs }}{{ $words = concat $words . }}{{ end }}
{{- end }}
{{- toJson (concat $words (list "--host" "0.0.0.0" "--port" (toJson .root.Values.servingEngineSpec.containerPort))) }}
{{- end }}

{{- /* How many ranks an engine has in its pod: those of vllmConfig, and what its extraArgs say, which come later and
win. Of data parallel ranks, those that this pod runs; where vLLM's own processes span nodes, this one's. A flag may be
cut short, as argparse takes it. */}}
{{- define "warmer.ranks" -}}
{{- $config := .vllmConfig | default dict }}
{{- $sizes := dict "tensor" (int ($config.tensorParallelSize | default 1)) "pipeline" (int ($config.pipelineParallelSize | default 1)) "context" 1 "nodes" 1 "data" 1 "local" 0 }}
{{- $flags := dict "--tensor-parallel-size" "tensor" "-tp" "tensor" "--pipeline-parallel-size" "pipeline" "-pp" "pipeline" "--prefill-context-parallel-size" "context" "-pcp" "context" "--nnodes" "nodes" "-n" "nodes" "--data-parallel-size" "data" "-dp" "data" "--data-parallel-size-local" "local" "-dpl" "local" "--data-parallel-rank" "one" "-dpn" "one" }}
{{- $words := $config.extraArgs | default list }}
{{- range $at, $word := $words }}
{{- $parts := splitn "=" 2 $word }}
{{- $flag := $parts._0 | replace "_" "-" }}
{{- range $known := list "--tensor-parallel-size" "--pipeline-parallel-size" }}
{{- if and (gt (len $flag) 5) (hasPrefix $flag $known) }}{{ $flag = $known }}{{ end }}
{{- end }}
{{- with get $flags $flag }}
{{- $value := $parts._1 }}
{{- if not (contains "=" $word) }}{{ $value = "" }}{{ if lt (add1 $at) (len $words) }}{{ $value = index $words (int (add1 $at)) }}{{ end }}{{ end }}
{{- if eq . "one" }}{{ $_ := set $sizes "local" 1 }}
{{- else if regexMatch "^[1-9][0-9]*$" $value }}{{ $_ := set $sizes . (int $value) }}{{ end }}
{{- end }}
{{- end }}
{{- $world := mul $sizes.tensor $sizes.pipeline $sizes.context ($sizes.local | default $sizes.data) }}
{{- div (add $world $sizes.nodes -1) $sizes.nodes }}
{{- end }}

{{- /* A GPU for each rank, in the server and in whatever builds its kernels: 0 is none. */}}
{{- define "warmer.gpus" -}}
{{- $ranks := include "warmer.ranks" . | int }}
{{- if hasKey . "requestGPU" }}
{{- if and (gt (int .requestGPU) 0) (lt (int .requestGPU) $ranks) }}
{{- fail (printf "model %s: requestGPU is %d, and the parallel sizes of vllmConfig and its extraArgs make %d ranks: each needs a GPU" .name (int .requestGPU) $ranks) }}
{{- end }}
{{- int .requestGPU }}
{{- else }}{{ if gt $ranks 1 }}{{ $ranks }}{{ else }}0{{ end }}{{ end }}
{{- end }}

{{- define "warmer.resources" -}}
{{- $gpus := include "warmer.gpus" . | trim | int -}}
{{- $kind := .requestGPUType | default "nvidia.com/gpu" -}}
requests:
  cpu: {{ include "warmer.text" .requestCPU | quote }}
  memory: {{ include "warmer.text" .requestMemory | quote }}
  {{- with $gpus }}
  {{ $kind }}: {{ . | quote }}
  {{- end }}
limits:
  {{- with .limitCPU }}
  cpu: {{ include "warmer.text" . | quote }}
  {{- end }}
  memory: {{ include "warmer.text" (.limitMemory | default .requestMemory) | quote }}
  {{- with $gpus }}
  {{ $kind }}: {{ . | quote }}
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

{{- /* Variables, each once: the last of a name wins, as in a container, and servers that merge by name take no two. */}}
{{- define "warmer.distinct" -}}
{{- $last := dict }}
{{- range $at, $one := . }}{{ $_ := set $last $one.name $at }}{{ end }}
{{- $kept := list }}
{{- range $at, $one := . }}{{ if eq $at (int (get $last $one.name)) }}{{ $kept = append $kept $one }}{{ end }}{{ end }}
{{- toYaml $kept }}
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
{{- if (.Values.warmer.trustedKeys).configMap }}
- {name: trusted-keys, mountPath: /etc/warmer/trusted, readOnly: true}
{{- end }}
{{- end }}

{{- define "warmer.signingMount" -}}
{{- if (.Values.warmer.signingKey).secret }}
- {name: signing-key, mountPath: /etc/warmer/signing, readOnly: true}
{{- end }}
{{- end }}

{{- define "warmer.models" -}}
- name: models
  {{- if .Values.persistence.hostPath }}
  hostPath: {path: {{ .Values.persistence.hostPath | quote }}, type: Directory}
  {{- else if .Values.persistence.enabled }}
  persistentVolumeClaim: {claimName: {{ include "warmer.claim" . | quote }}}
  {{- else }}
  emptyDir: {}
  {{- end }}
{{- end }}

{{- define "warmer.volumes" -}}
{{ include "warmer.models" . }}
- name: warm
  emptyDir:
    sizeLimit: {{ include "warmer.text" .Values.warmDir.sizeLimit | quote }}
    {{- with .Values.warmDir.medium }}
    medium: {{ . }}
    {{- end }}
- name: tmp
  emptyDir: {}
- name: shm
  emptyDir: {medium: Memory, sizeLimit: {{ include "warmer.text" .Values.servingEngineSpec.shmSize | quote }}}
{{ include "warmer.keyVolumes" . }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "warmer.keyVolumes" -}}
{{- with .Values.warmer.trustedKeys }}{{ if .configMap }}
- name: trusted-keys
  configMap: {name: {{ .configMap | quote }}, items: [{key: {{ .key | quote }}, path: keys.pub}]}
{{- end }}{{ end }}
{{- with .Values.warmer.signingKey }}{{ if .secret }}
- name: signing-key
  secret: {secretName: {{ .secret | quote }}, defaultMode: 288, items: [{key: {{ .key | quote }}, path: key}]}
{{- end }}{{ end }}
{{- end }}

{{- define "warmer.prefillEnv" -}}
- {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
{{- with .model.hf_token }}
- {name: HF_TOKEN, valueFrom: {secretKeyRef: {name: {{ .secretName | quote }}, key: {{ .secretKey | quote }}}}}
{{- end }}
{{ include "warmer.env" . }}
{{- end }}

{{- /* The container that fills, restores and hands off. */}}
{{- define "warmer.prefill" -}}
name: warmer
image: {{ include "warmer.image" .root | quote }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
command: [/opt/warmer/entrypoints/init]
args: {{ concat (list "--") (include "warmer.serveArgs" . | fromJsonArray) | toJson }}
envFrom:
  - configMapRef: {name: {{ include "warmer.fullname" .root }}-{{ .model.name }}}
env:
  {{- include "warmer.distinct" (include "warmer.prefillEnv" . | fromYamlArray) | nindent 2 }}
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

{{- define "warmer.sidecarEnv" -}}
{{- $v := .root.Values -}}
- {name: WARMER_VOLUME, value: {{ $v.persistence.mountPath | quote }}}
- {name: WARMER_WARM_DIR, value: {{ $v.warmDir.mountPath | quote }}}
- {name: WARMER_LOCK, value: {{ include "warmer.lock" .root | quote }}}
- {name: WARMER_HTTP_PORT, value: {{ $v.metrics.port | quote }}}
{{- if not (kindIs "invalid" $v.sidecar.quiet) }}
- {name: WARMER_QUIET, value: {{ $v.sidecar.quiet | toJson | quote }}}
{{- end }}
{{- if not (kindIs "invalid" $v.sidecar.harvestEvery) }}
- {name: WARMER_HARVEST_EVERY, value: {{ $v.sidecar.harvestEvery | toJson | quote }}}
{{- end }}
{{- if not (kindIs "invalid" $v.sidecar.harvestMost) }}
- {name: WARMER_HARVEST_MOST, value: {{ $v.sidecar.harvestMost | toJson | quote }}}
{{- end }}
{{- if not (kindIs "invalid" $v.warmer.retry) }}
- {name: WARMER_RETRY, value: {{ $v.warmer.retry | toJson | quote }}}
{{- end }}
{{- with $v.warmer.remote }}
- {name: WARMER_REMOTE, value: {{ . | quote }}}
{{- end }}
{{- if ($v.warmer.trustedKeys).configMap }}
- {name: WARMER_TRUSTED_KEYS, value: /etc/warmer/trusted/keys.pub}
{{- end }}
{{- if include "warmer.harvests" .root }}
{{- if ($v.warmer.signingKey).secret }}
- {name: WARMER_SIGNING_KEY, value: /etc/warmer/signing/key}
{{- end }}
# A file that holds the server's secret is not published.
{{- include "warmer.apiKey" .root | nindent 0 }}
{{- end }}
- {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
{{- include "warmer.env" . | nindent 0 }}
{{- end }}

{{- /* Beside the server: a native sidecar, after the prefill. No startup probe: the server would wait for it. */}}
{{- define "warmer.sidecar" -}}
{{- $v := .root.Values -}}
name: warmer-sidecar
restartPolicy: Always
image: {{ include "warmer.image" .root | quote }}
imagePullPolicy: {{ $v.image.pullPolicy }}
command: [/opt/warmer/entrypoints/sidecar]
env:
  {{- include "warmer.distinct" (include "warmer.sidecarEnv" . | fromYamlArray) | nindent 2 }}
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
- {name: VLLM_API_KEY, valueFrom: {secretKeyRef: {name: {{ .secretName | quote }}, key: {{ .secretKey | quote }}}}}
{{- end }}{{ end }}
{{- end }}

{{- define "warmer.placing" -}}
serviceAccountName: {{ include "warmer.serviceAccountName" . | quote }}
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
runtimeClassName: {{ . | quote }}
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
backoffLimitPerIndex: {{ .root.Values.job.backoffLimit }}   # a node that fails is its own failure
{{- else }}
backoffLimit: {{ .root.Values.job.backoffLimit }}
{{- end }}
activeDeadlineSeconds: {{ .root.Values.job.activeDeadlineSeconds | toJson }}
ttlSecondsAfterFinished: {{ .root.Values.job.ttlSecondsAfterFinished | toJson }}
podFailurePolicy:
  rules:
    - action: Ignore               # the node went away
      onPodConditions: [{type: DisruptionTarget, status: "True"}]
    - action: FailJob              # 2: usage; it would be the same again
      onExitCodes: {containerName: warmer, operator: In, values: [2]}
template:
  metadata:
    labels:
      {{- include "warmer.podLabels" (dict "root" .root "own" (dict "app.kubernetes.io/component" "prefill" "prefill" (include "warmer.jobName" .))) | nindent 6 }}
    {{- with .root.Values.podAnnotations }}
    annotations:
      {{- toYaml . | nindent 6 }}
    {{- end }}
  spec:
    {{- with .model.priorityClassName }}
    priorityClassName: {{ . | quote }}
    {{- end }}
    restartPolicy: Never
    {{- include "warmer.placing" (dict "Values" $values "Release" .root.Release "Chart" .root.Chart) | nindent 4 }}
    containers:
      - {{- include "warmer.prefill" . | nindent 8 }}
    volumes:
      {{- include "warmer.volumes" .root | nindent 6 }}
{{- end }}
