"""Great Expectations results as JSON and as a page, without what differs between two honest runs (ids, times)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from great_expectations.core import ExpectationSuiteValidationResult, ExpectationValidationResult

UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
# The page must open without a network, and must not phone home: what it loads from elsewhere goes, a few styles come.
REMOTE = re.compile(
    r'<script\b[^>]*>.*?</script>|<link\b[^>]*href="https?:[^>]*>|<footer\b.*?</footer>|<img\b[^>]*src="https?:[^>]*>'
    r"|background: url\('https?:[^;]*;",
    re.DOTALL,
)
STYLES = """<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; }
table { border-collapse: collapse; width: 100%; margin: .5rem 0; }
td, th { border: 1px solid #ccc; padding: .3rem .6rem; text-align: left; vertical-align: top; }
.modal, .ge-walkthrough-modal, nav .btn, .navbar-brand img { display: none; }
.fa-check-circle::before { content: "\\2713"; color: #2e7d32; } .fa-times::before { content: "\\2717"; color: #c62828; }
.fa-exclamation-triangle::before { content: "!"; color: #c62828; }
</style></head>"""


def name_of(one: ExpectationValidationResult) -> str:
    """`expect_column_values_to_be_unique(doc_id)`."""
    config = one.expectation_config
    assert config is not None
    return f"{config.type}({config.kwargs.get('column', '')})"


def merged(
    results: list[ExpectationValidationResult], name: str, address: str, night: str
) -> ExpectationSuiteValidationResult:
    """All results as one, sorted, without ids, times and tracebacks."""
    from great_expectations import __version__
    from great_expectations.core import ExpectationSuiteValidationResult

    for one in results:
        assert one.expectation_config is not None
        one.expectation_config.id = None
        one.expectation_config.kwargs.pop("batch_id", None)
        one.exception_info = _without_traceback(one.exception_info)
    results = sorted(results, key=lambda one: (name_of(one), str(one.expectation_config)))
    passed = sum(bool(one.success) for one in results)
    return ExpectationSuiteValidationResult(
        success=passed == len(results),
        results=results,
        suite_name=name,
        statistics={
            "evaluated_expectations": len(results),
            "successful_expectations": passed,
            "unsuccessful_expectations": len(results) - passed,
            "success_percent": 100.0 * passed / len(results) if results else 0.0,
        },
        meta={
            "great_expectations_version": __version__,
            "batch_spec": {"data_asset_name": address},
            "run_id": {"run_name": f"night {night}", "run_time": ""},
        },
    )


def _without_traceback(info: dict[str, Any]) -> dict[str, Any]:
    """Of an exception only the class and first line; the metric it is filed under has a random part."""
    errors = [info] if "raised_exception" in info else list(info.values())
    messages = sorted(
        {str(e.get("exception_message")).splitlines()[0][:300] for e in errors if e.get("raised_exception")}
    )
    return {
        "raised_exception": bool(messages),
        "exception_message": "; ".join(messages) or None,
        "exception_traceback": None,
    }


def as_json(page: ExpectationSuiteValidationResult, failed: list[str]) -> dict[str, Any]:
    fields: dict[str, Any] = page.to_json_dict()
    return fields | {"success": not failed, "failed": sorted(failed)}


def as_html(page: ExpectationSuiteValidationResult) -> str:
    from great_expectations.render.renderer import ValidationResultsPageRenderer
    from great_expectations.render.view import DefaultJinjaPageView

    html = DefaultJinjaPageView().render(ValidationResultsPageRenderer().render(page))
    html = REMOTE.sub("", html).replace("</head>", STYLES, 1)
    seen: dict[str, str] = {}
    return UUID.sub(lambda found: seen.setdefault(found[0], f"element-{len(seen)}"), html)
