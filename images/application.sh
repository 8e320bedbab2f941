#!/bin/sh
# Stage the application for the image: environment, engine, commands, units. Runs inside the tools tree, offline.
#
#   images/application.sh DIR        wheels of images/wheelhouse.sh in $PIP_FIND_LINKS, engine cache in $SATCHEL_CACHE
#
# Python files are compiled here, bound to their content: the root is read-only, and every file of an
# image has one date, which would make ordinary byte code look stale at each start.
set -eu
dir=$1
build=/build/venv
cd /src

# Archives that pip makes and unpacks get one date, the image's own: see SourceDateEpoch in mkosi.conf.
export PYTHONHASHSEED=0 SOURCE_DATE_EPOCH=1764028800
python3 -m venv "$build"
"$build/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes \
  -r requirements/main.txt -r requirements/build.txt
"$build/bin/python" requirements/engine.py
# The commands themselves write their completion.
"$build/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation \
  --force-reinstall .

rm -rf "$dir" /build/wheel
make --no-print-directory staged PYTHON=python3 BIN="$build/bin" WHEEL=/build/wheel DESTDIR="$dir"
# What only an installer needs stays out of the image.
"$dir/usr/lib/satchel/bin/python" -m pip uninstall --quiet --yes pip
for program in "$dir"/usr/lib/satchel/bin/*; do
  case ${program##*/} in python* | satchel*) ;; *) rm "$program" ;; esac
done
find "$dir" -name __pycache__ -type d -prune -exec rm -rf {} +
find "$dir/usr/lib/satchel" \( -name direct_url.json -o -name engine-key \) -delete
find "$dir/usr/lib/satchel" -name RECORD -exec sed -i '/\/direct_url\.json,/d' {} +
python3 -m compileall -q -f -j 0 --invalidation-mode unchecked-hash -s "$dir" "$dir/usr/lib/satchel/lib"
