#!/bin/sh
# Runs once inside the new tree, as its root: what can be prepared there, and a check that it works.
set -eu
export LANG=C.UTF-8 HOME=/root MPLBACKEND=Agg

# The first plot of a sandbox would otherwise spend seconds looking for fonts.
sed -i 's/^#* *backend *:.*/backend: Agg/' /etc/matplotlibrc
python3 - <<'EOF'
import matplotlib.pyplot, numpy, pandas, sqlite3, ssl, venv
import bs4, IPython, jinja2, openpyxl, PIL, yaml
matplotlib.pyplot.plot(numpy.arange(3))
matplotlib.pyplot.savefig("/tmp/plot.png")
assert matplotlib.get_backend().lower() == "agg"
EOF

# gcc and rustc find their linker by PATH. Whoever needs the other says -fuse-ld=bfd.
ln -s /usr/bin/mold /usr/local/bin/ld

mkdir -p /tmp/check
cd /tmp/check
echo 'fn main() { println!("rust works"); }' >hello.rs
rustc hello.rs
./hello
echo 'int main(void) { return 0; }' >hello.c
gcc hello.c -o hello_c
./hello_c
node -e 'console.log("node works")'
if [ "$BASE" = full ]; then
    python3 -c 'import plotly, scipy.optimize, sklearn.linear_model, sympy'
    echo '#include <vector>
int main() { return std::vector<int>().size(); }' >hello.cpp
    g++ hello.cpp -o hello_cpp
    ./hello_cpp
    cmake --version
fi
python3 --version
for tool in pip uv node npm npx rustc cargo gcc git curl rsync strace; do
    echo "$tool: $("$tool" --version | head -n 1)"
done
