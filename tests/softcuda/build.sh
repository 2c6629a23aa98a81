#!/usr/bin/env bash
# Builds the software device from candle-kernels' own sources: tests/softcuda/build.sh FOLDER
# FOLDER then looks like a CUDA toolkit: bin/nvcc, include, lib64 with libcuda and its siblings. What is newer than
# its sources stays.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1/bin" "$1/include" "$1/lib64" "$1/objects"
out=$(cd "$1" && pwd)
cmp -s "$here/nvcc" "$out/bin/nvcc" || cp "$here/nvcc" "$out/bin/nvcc"
touch "$out/include/cuda.h" # cudarc and candle-kernels look whether it is there

# where cargo keeps a package's source
source_of() {
  cargo metadata --format-version 1 --locked --features flm-cli/cuda --manifest-path "$here/../../Cargo.toml" |
    python3 -c 'import json, os, sys
print(next(os.path.dirname(p["manifest_path"]) for p in json.load(sys.stdin)["packages"] if p["name"] == sys.argv[1]))' "$1"
}
kernels=$(source_of candle-kernels)/src
bindings=$(source_of cudarc)/src

# one rounding an operation, as the comparisons with the CPU expect; the kernels' own warnings are not ours
flags="-std=c++17 -O2 -fPIC -w -fno-strict-aliasing -ffp-contract=off -include softcuda.h -I$here/include"
device="-x c++ -D__CUDA_ARCH__=900 -D__CUDACC_VER_MAJOR__=13 -D__CUDACC_VER_MINOR__=0 -I$kernels"
compiler=${CXX:-c++}

newer() { # whether $1 is there and newer than all others
  local file=$1
  shift
  [ -e "$file" ] || return 1
  for source in "$@"; do [ "$file" -nt "$source" ] || return 1; done
}
module() { # a .cu and a registration of each of its kernels, whose names only the preprocessor knows
  local name=$1 object=$out/objects/$1.o
  newer "$object" "$here/include/softcuda.h" "$kernels/$name.cu" && return
  local fibers=false names
  grep -q '__syncthreads\|__shfl' "$kernels/$name.cu" && fibers=true
  names=$($compiler $flags $device -E -P "$kernels/$name.cu" | grep -oE 'extern "C" +void +[a-z0-9_]+' | grep -oE '[a-z0-9_]+$' | sort -u)
  {
    echo "#include \"$kernels/$name.cu\""
    for kernel in $names; do
      echo "static SoftRegister<&$kernel> register_$kernel(\"$name\", \"$kernel\", $fibers);"
    done
  } >"$out/objects/$name.cpp"
  $compiler $flags $device -c "$out/objects/$name.cpp" -o "$object"
  # modules do not see each other: several have functions of the same name
  objcopy --keep-global-symbol=none "$object"
}
part() {
  newer "$out/objects/$1.o" "$here/include/softcuda.h" "$here/device.h" "$here/$1.cpp" ||
    $compiler $flags -O3 -c "$here/$1.cpp" -o "$out/objects/$1.o"
}
modules='affine binary cast fill indexing reduce ternary unary' parts='memory launch blas'
jobs=()
for name in $modules; do module "$name" & jobs+=($!); done
for name in $parts; do part "$name" & jobs+=($!); done
for job in "${jobs[@]}"; do wait "$job"; done

# whatever else cudarc may link: it says so and ends the process
objects=$(for name in $modules $parts; do echo "$out/objects/$name.o"; done)
{
  echo '#include <stdio.h>'
  echo '#include <stdlib.h>'
  comm -23 \
    <(grep -rhoE ' fn (cu|nvrtc)[A-Za-z0-9_]+' "$bindings"/{driver,cublas,cublaslt,curand,nvrtc}/sys | awk '{print $2}' | sort -u) \
    <(nm --defined-only $objects | awk '{print $3}' | sort -u) |
    sed 's/.*/void &(void) { fprintf(stderr, "softcuda: & is not implemented\\n"); abort(); }/'
} >"$out/objects/missing.c"
cc -fPIC -w -c -o "$out/objects/missing.o" "$out/objects/missing.c"
$compiler -shared -Wl,-soname,libcuda.so.1 -o "$out/lib64/libcuda.so.1.new" $objects "$out/objects/missing.o"
mv "$out/lib64/libcuda.so.1.new" "$out/lib64/libcuda.so.1"
for name in cuda cublas cublasLt curand nvrtc cudart; do ln -sf libcuda.so.1 "$out/lib64/lib$name.so"; done
