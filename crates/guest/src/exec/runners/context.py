"""A Python context: runs the cells that it is sent, one after the other, with the same variables.

Standard input is its control socket, a stream. A request is a line of JSON with the descriptor of standard input for
the run:

    {"cell": FILE, "room": {"form": BYTES, "forms": BYTES, "images": BYTES}}

`room` bounds the results of the run: one form, all forms but images, all images. What is sent back begins with a line
of JSON:

    {"result": [PART, ...], "id": ID, "update": BOOL, "earlier": BOOL}
                      a value that the cell shows, in several forms; the bytes of each follow. PART is
                      [TYPE, BYTES] or, if fewer bytes follow than the form has, [TYPE, BYTES, ALL BYTES, PATH], where
                      PATH (or null) is a file that has all of them. With `update`, it replaces the results of this ID.
    {"clear": true}   the results so far are dropped
    {"done": CODE}    the cell has ended, with what would be its exit code

The first `done` says that requests are taken. All that the process prints is written before `done` is.
"""

import os
import sys
import types

package = types.ModuleType("bouvet_context")
package.__path__ = [os.path.join(os.path.dirname(os.path.abspath(__file__)), "context")]
sys.modules["bouvet_context"] = package

from bouvet_context import serve  # noqa: E402

serve.start()
