#!/bin/sh
# install.sh SOURCE OUT: warmer in an environment of its own, laid out below OUT as in the image.
#
# An environment of its own, because nothing that the engine imports may change: kernels are keyed by
# the versions of what lies in its site-packages.
set -eu
source=${1:?usage: install.sh SOURCE OUT} out=${2:?}
home=/opt/warmer

python3 -m venv --without-pip "$home"
install() {
    if python3 -m pip --version >/dev/null 2>&1; then
        python3 -m pip --disable-pip-version-check --python "$home/bin/python3" \
            install --quiet --no-cache-dir --no-compile "$@"
    else # some serving images have uv alone
        uv pip install --quiet --no-cache --python "$home/bin/python3" "$@"
    fi
}
# Every file by its hash, what builds warmer too: no index decides what is run beside the signing key.
install --require-hashes -r "$source/requirements.txt"
install --no-deps --no-build-isolation "$source"
cp -R "$source/entrypoints" "$home/entrypoints"
chmod 0755 "$home"/entrypoints/*

# What is installed and never loaded: what built warmer, AWS's other services, the Hub's own transfers,
# headers, tests.
site=$("$home/bin/python3" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
for service in "$site"/botocore/data/*/; do
    case ${service#"$site"/botocore/data/} in
        s3/ | sts/ | sso/ | sso-oidc/ | signin/) ;;
        *) rm -rf "$service" ;;
    esac
done
rm -rf "$site"/setuptools "$site"/setuptools-*.dist-info "$site"/pkg_resources "$site"/_distutils_hack \
    "$site"/distutils-precedence.pth "$site"/hf_xet "$site"/hf_xet-*.dist-info "$site"/botocore/.changes "$home"/include
find "$home/bin" -type f ! -name warmer -exec rm -f {} +
find "$site" -type d \( -name tests -o -name test \) -prune -exec rm -rf {} +
find "$site" -type f \( -name '*.[acho]' -o -name '*.pyx' -o -name '*.pyi' \) -exec rm -f {} +

# By the sources' hashes nobody asks for: times change as layers are copied, and the root may be read-only.
# -f: what the build itself has imported is compiled already, by time.
"$home/bin/python3" -m compileall -q -f -j 0 --invalidation-mode unchecked-hash "$site"

mkdir -p "$out/opt" "$out/usr/local/bin" "$out/warm"
chmod 0775 "$out/warm"
mv "$home" "$out$home"
ln -s "$home/bin/warmer" "$out/usr/local/bin/warmer"
chmod -R u=rwX,go=rX "$out$home"
