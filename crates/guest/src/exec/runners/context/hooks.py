"""Changes to some libraries as they are imported: they show in results what they would show elsewhere."""

import os
import sys
import threading
import types

from bouvet_context import figures, loop


# Pillow's modes that a PNG can have.
PNG_MODES = ("1", "I", "I;16", "L", "LA", "P", "RGB", "RGBA")
# Of a page that a server in this sandbox sends.
MAX_PAGE_BYTES = 16 * 1024 * 1024
FETCH_TIMEOUT_SECONDS = 10

# The threads that fetch pages for the cell of the moment.
fetches = []


class Finder:
    """Calls a hook once its module is loaded."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name not in HOOKS:
            return None
        found = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not cls)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def load_and_hook(module):
            load(module)
            if name in HOOKS:
                called(HOOKS.pop(name), module)

        spec.loader.exec_module = load_and_hook
        return spec


def called(hook, module):
    """Calls `hook`. A library that is not as it expects is used as it is."""
    try:
        hook(module)
    except (AttributeError, ImportError, KeyError, TypeError, ValueError) as error:
        print(f"{module.__name__} could not be prepared for this context: {error!r}", file=sys.stderr)


def install():
    for name in [name for name in HOOKS if name in sys.modules]:
        called(HOOKS.pop(name), sys.modules[name])
    sys.meta_path.insert(0, Finder)


def take_up_ipython(_):
    from bouvet_context import cells

    cells.take_up()


def take_up_pillow(module):
    from bouvet_context import show

    def show_image(image, title=None):
        show.show(image if image.mode in PNG_MODES else image.convert("RGB"))

    module.Image.show = show_image


def take_up_plotly(module):
    """Figures are results, without a server for them, and with plotly.js from where it is published."""
    from bouvet_context import show

    def show_html(html, *_, **__):
        show.show({"text/html": html}, raw=True)

    base = sys.modules["plotly.io._base_renderers"]
    base.open_html_in_browser = show_html
    if module.ipython_display is None:
        stand_in = types.SimpleNamespace(display=show.display, display_html=show_html)
        module.ipython_display = base.ipython_display = stand_in
    if module.nbformat is None:
        module.nbformat = types.SimpleNamespace(__version__="5.0.0")  # Asked for its version, and nothing else.
    if not os.environ.get("PLOTLY_RENDERER"):
        module.renderers.default = "plotly_mimetype+colab"


def take_up_browser(module):
    """Pages that are opened in a browser are results: files with what is in them."""
    from bouvet_context import show

    class Browser(module.BaseBrowser):
        def open(self, url, new=0, autoraise=True):
            if is_served_here(url):
                fetches.append(threading.Thread(target=fetch, args=[url], daemon=True))
                fetches[-1].start()  # Libraries may begin to serve the page only after this.
            else:
                show.show(page(url), raw=True)
            return True

    if "BROWSER" not in os.environ:
        module.register("context", None, Browser("context"), preferred=True)


def is_served_here(url):
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    return parts.scheme == "http" and parts.hostname in ("127.0.0.1", "::1", "localhost")


def fetch(url):
    """Shows the page of a server in this sandbox; of one that does not send it, the address."""
    import urllib.request
    from http.client import HTTPException

    from bouvet_context import show

    forms = {"text/plain": url}
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(url, timeout=FETCH_TIMEOUT_SECONDS) as answer:
            content = answer.read(MAX_PAGE_BYTES + 1)
            if answer.headers.get_content_type() == "text/html" and len(content) <= MAX_PAGE_BYTES:
                forms["text/html"] = content
    except (OSError, HTTPException, ValueError):
        pass
    show.show(forms, raw=True)


def wait_for_pages():
    """Waits until the pages that the cell opened are shown."""
    while fetches:
        fetches.pop().join()


def page(url):
    """The forms of what is at `url`."""
    from urllib.parse import unquote, urlsplit

    parts = urlsplit(url)
    path = unquote(parts.path) if parts.scheme in ("", "file") else None
    if path is None or not os.path.isfile(path):
        return {"text/plain": url}
    with open(path, "rb") as file:
        content = file.read()
    is_html = path.endswith((".html", ".htm", ".xhtml"))
    return {"text/plain": path, **({"text/html": content} if is_html else {})}


HOOKS = {
    "IPython": take_up_ipython,
    "PIL.Image": take_up_pillow,
    "asyncio": loop.take_up,
    "matplotlib.pyplot": figures.take_up,
    "plotly.io._renderers": take_up_plotly,
    "webbrowser": take_up_browser,
}
