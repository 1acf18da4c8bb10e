"""The page at /: files of this package, under a policy that lets the browser load nothing else."""

from pathlib import Path

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from components.serving.api_errors import ApiError

FOLDER = Path(__file__).with_name("page")
TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
FILES = {file.name: file for file in FOLDER.iterdir() if file.suffix in TYPES}


async def page(http: HttpRequest) -> Response:
    """A file of the page. Raises ApiError for another name."""
    name = http.path_params.get("name", "index.html")
    if name not in FILES:
        raise ApiError(404, f"Unknown request URL: GET {http.url.path[:200]}", code="unknown_url")
    file = FILES[name]
    return Response(file.read_bytes(), media_type=TYPES[file.suffix], headers=HEADERS)
