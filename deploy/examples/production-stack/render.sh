#!/bin/sh
# A Helm post-renderer: manifests in, manifests out. Needs kubectl.
set -eu
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat >"$work/all.yaml"
cp kustomization.yaml "$work/"
kubectl kustomize "$work"
