#!/bin/sh
# A Helm post-renderer: manifests in, manifests out. Needs kubectl.
set -eu
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat >"$work/all.yaml"
cp kustomization.yaml "$work/"
kubectl kustomize "$work" >"$work/out.yaml"
# A patch whose target is not there changes nothing, and says nothing.
if ! grep -q /warm/handoff/serve "$work/out.yaml"; then
    echo "got no Deployment named as kustomization.yaml's target, expected the model's" >&2
    exit 1
fi
cat "$work/out.yaml"
