//! What libraries show by themselves in contexts of Python: one result for each value.
//!
//! A library that the sandbox lacks is replaced by a stand-in, which asks for its browser, viewer or notebook as the
//! library itself does.

use bouvet_host::{Host, Program};
use bytes::Bytes;

use super::contexts::{Notebook, text, types};
use super::create;
use crate::drive::run;

const PILLOW: &str = "class Image:
    mode = 'RGB'
    def convert(self, mode): return self
    def _repr_png_(self): return b'\\x89PNG'
    def show(self, title=None): raise RuntimeError('there is no viewer')
def new(mode, size): return Image()
";

/// Takes its browser and notebook as `plotly.io` does, from the modules that it looks for as it is imported.
const PLOTLY: &str = "from plotly.io import _base_renderers
ipython_display = nbformat = None
class Renderers:
    default = 'browser'
renderers = Renderers()
def forms(name, figure):
    if name == 'browser':
        return _base_renderers.open_html_in_browser('<p>') or {}
    if not ipython_display or not nbformat or nbformat.__version__ < '4.2.0':
        raise ValueError('Mime type rendering requires ipython and nbformat')
    return {'application/vnd.plotly.v1+json': figure} if name == 'plotly_mimetype' else {'text/html': '<p>'}
class Figure:
    def show(self):
        bundle = {}
        for name in renderers.default.split('+'):
            bundle.update(forms(name, {'data': []}))
        if bundle:
            ipython_display.display(bundle, raw=True)
";
const PLOTLY_BASE: &str = "ipython_display = None
def open_html_in_browser(html, using=None, new=0, autoraise=True): raise RuntimeError('there is no browser')
";

/// Writes a page, and opens it.
const BOKEH: &str = "import tempfile, webbrowser
def figure(): return 'figure'
def show(figure):
    with tempfile.NamedTemporaryFile('w', suffix='.html', delete=False) as page:
        page.write('<p>page</p>')
    webbrowser.get(None).open('file://' + page.name, new=2)
";

/// Opens a page, and then serves it once.
const ALTAIR: &str = "import webbrowser
from http.server import BaseHTTPRequestHandler, HTTPServer
class Once(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header('Content-type', 'text/html')
        self.end_headers()
        self.wfile.write(b'<p>served</p>')
    def log_message(self, *arguments): pass
class Chart:
    def _repr_mimebundle_(self, *arguments, **options): return {'text/html': '<p>chart</p>'}
    def serve(self):
        server = HTTPServer(('127.0.0.1', 0), Once)
        webbrowser.get(None).open(f'http://127.0.0.1:{server.server_port}')
        server.handle_request()
";

const RICH: &str = "class Table:
    def _repr_mimebundle_(self, include, exclude, **options):
        return {'text/plain': 'a table', 'text/html': '<pre>a table</pre>'}
";

/// Library, and the files that stand in for it.
const STAND_INS: [(&str, &[(&str, &str)]); 5] = [
    ("PIL", &[("PIL/Image.py", PILLOW)]),
    (
        "plotly",
        &[
            ("plotly/graph_objects.py", "from plotly.io._renderers import Figure\n"),
            ("plotly/io/_renderers.py", PLOTLY),
            ("plotly/io/_base_renderers.py", PLOTLY_BASE),
        ],
    ),
    ("bokeh", &[("bokeh/plotting.py", BOKEH)]),
    ("rich", &[("rich/table.py", RICH)]),
    // The real one is of no use here: it shows itself by IPython, or by a page as this does.
    ("charts", &[("charts.py", ALTAIR)]),
];

const HTML: &[&str] = &["text/html", "text/plain"];
const PNG: &[&str] = &["image/png", "text/plain"];

pub async fn libraries_show_each_value_once(host: &Host) {
    let sandbox = create(host).await;
    for (name, files) in STAND_INS {
        let find = format!("import importlib.util as u, sys; sys.exit(u.find_spec('{name}') is None)");
        if run(&sandbox, Program::Python, &find).await.exit.exit_code != 0 {
            for (path, source) in files {
                sandbox.write(path, Bytes::from_static(source.as_bytes()), false).await.unwrap();
            }
        }
    }
    let python = Notebook::new(&sandbox, Program::Python).await;
    for (source, shown) in [
        ("from PIL import Image; Image.new('RGB', (4, 3)).show()", PNG),
        ("Image.new('CMYK', (4, 3)).show()", PNG),
        (
            "import plotly.graph_objects as go; go.Figure().show()",
            &["application/vnd.plotly.v1+json", "text/html"],
        ),
        ("from bokeh.plotting import figure, show; show(figure())", HTML),
        ("from charts import Chart; Chart()", HTML),
        ("Chart().serve()", HTML),
        ("from rich.table import Table; Table()", HTML),
        (
            "class Drawing:\n    def _repr_svg_(self): return '<svg/>'\nDrawing()",
            &["image/svg+xml", "text/plain"],
        ),
        ("import webbrowser; webbrowser.open('http://127.0.0.1:1/');", &["text/plain"]),
    ] {
        let result = python.run(source).await;
        let stderr = result.stderr.text();
        assert_eq!((result.exit.exit_code, types(&result)), (0, vec![shown.to_vec()]), "{source}: {stderr}");
        if source == "Chart().serve()" {
            assert_eq!(text(&result.results[0], "text/html"), "<p>served</p>");
        }
    }
}
