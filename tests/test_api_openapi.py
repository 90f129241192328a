"""The served document: a superset of the reference, and true to the routes."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from starlette.routing import Mount, Route

from api.app import OPENAPI_FILE, build_api
from api.errors import STATUSES
from api.resource import ApiSettings, Resource

ROOT = Path(__file__).resolve().parent.parent
Document = dict[str, Any]

REQUEST, RESPONSE = "request", "response"
BOUNDS = (
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    *("minLength", "maxLength", "pattern", "minItems", "maxItems", "uniqueItems", "format"),
)


def load(path: Path) -> Document:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


ORIGINAL = load(ROOT / "tests/data/aitbc-api-reference.yaml")
REPAIRED = load(ROOT / "docs/aitbc-reference.yaml")
SERVED = load(OPENAPI_FILE)


class Comparison:
    """Everything that a client of the old document would miss in the new one."""

    def __init__(self, old: Document, new: Document) -> None:
        self.old, self.new = old, new
        self.problems: list[str] = []
        for path, operations in old["paths"].items():
            for method, operation in operations.items():
                self._operation(
                    f"{method} {path}", operation, new["paths"].get(path, {}).get(method)
                )
        schemes = new["components"].get("securitySchemes", {})
        for name, scheme in old["components"].get("securitySchemes", {}).items():
            self._expect(schemes.get(name) == scheme, f"security scheme {name}: changed")

    def _expect(self, holds: object, problem: str) -> None:
        if not holds:
            self.problems.append(problem)

    def _resolve(self, document: Document, node: Any) -> Any:
        while isinstance(node, dict) and "$ref" in node:
            target: Any = document
            for key in node["$ref"].removeprefix("#/").split("/"):
                target = target.get(key, {})
            node = target
        return node

    def _schema_of(self, document: Document, node: Any) -> Document:
        node = self._resolve(document, node)
        merged: Document = {key: value for key, value in node.items() if key != "allOf"}
        for part in node.get("allOf", ()):
            for key, value in self._schema_of(document, part).items():
                if key == "properties":
                    merged["properties"] = {**value, **merged.get("properties", {})}
                elif key == "required":
                    merged["required"] = [*value, *merged.get("required", [])]
                else:
                    merged.setdefault(key, value)
        return merged

    def _operation(self, place: str, old: Document, new: Document | None) -> None:
        if new is None:
            self.problems.append(f"{place}: removed")
            return
        self._security(place, old, new)
        self._parameters(place, old.get("parameters", []), new.get("parameters", []))
        self._body(
            place,
            self._resolve(self.old, old.get("requestBody")),
            self._resolve(self.new, new.get("requestBody")),
        )
        for status, response in old["responses"].items():
            if status not in new["responses"]:
                self.problems.append(f"{place} {status}: removed")
                continue
            before = self._resolve(self.old, response)
            after = self._resolve(self.new, new["responses"][status])
            self._content(f"{place} {status}", before, after, RESPONSE)

    def _security(self, place: str, old: Document, new: Document) -> None:
        before = old.get("security", self.old.get("security", [{}]))
        after = new.get("security", self.new.get("security", [{}]))
        self._expect(all(way in after for way in before), f"{place}: other keys needed")

    def _parameters(self, place: str, old: list[Document], new: list[Document]) -> None:
        before = {(p["name"], p["in"]): p for p in (self._resolve(self.old, p) for p in old)}
        after = {(p["name"], p["in"]): p for p in (self._resolve(self.new, p) for p in new)}
        for key, parameter in before.items():
            if key not in after:
                self.problems.append(f"{place} {key[0]}: removed")
                continue
            self._schema(f"{place} {key[0]}", parameter["schema"], after[key]["schema"], REQUEST)
        for key, parameter in after.items():
            was_required = before.get(key, {}).get("required", False)
            is_required = parameter.get("required", False)
            self._expect(was_required or not is_required, f"{place} {key[0]}: newly required")

    def _body(self, place: str, old: Document | None, new: Document | None) -> None:
        was_required = bool(old and old.get("required"))
        is_required = bool(new and new.get("required"))
        self._expect(was_required or not is_required, f"{place} body: newly required")
        if old:
            self._content(f"{place} body", old, new or {}, REQUEST)

    def _content(self, place: str, old: Document, new: Document, direction: str) -> None:
        for media_type, content in old.get("content", {}).items():
            after = new.get("content", {}).get(media_type)
            if after is None:
                self.problems.append(f"{place}: no {media_type}")
            else:
                self._schema(place, content["schema"], after["schema"], direction)

    def _schema(self, place: str, before: Any, after: Any, direction: str) -> None:
        old, new = self._schema_of(self.old, before), self._schema_of(self.new, after)
        if not old:
            return
        wider, tighter = (old, new) if direction == REQUEST else (new, old)
        self._expect(new.get("type") == old.get("type"), f"{place}: another type")
        self._expect(
            tighter.get("nullable", False) or not wider.get("nullable", False),
            f"{place}: nullable changed",
        )
        for bound in BOUNDS:
            self._expect(
                bound not in tighter or tighter[bound] == wider.get(bound), f"{place}: {bound}"
            )
        if "enum" in old:
            same = set(old["enum"]) == set(new.get("enum", ()))
            self._expect(same, f"{place}: other values")
        else:
            self._expect(direction == RESPONSE or "enum" not in new, f"{place}: fewer values")
        self._expect(
            "default" not in old or old["default"] == new.get("default"),
            f"{place}: another default",
        )
        missing = set(tighter.get("required", ())) - set(wider.get("required", ()))
        self._expect(not missing, f"{place}: required {sorted(missing)}")
        self._expect(new.get("additionalProperties") is not False, f"{place}: closed")
        for name, schema in old.get("properties", {}).items():
            if name not in new.get("properties", {}):
                self.problems.append(f"{place}.{name}: removed")
            else:
                self._schema(f"{place}.{name}", schema, new["properties"][name], direction)
        if "items" in old:
            self._schema(f"{place}[]", old["items"], new.get("items", {}), direction)


def missing(old: Document, new: Document) -> list[str]:
    return Comparison(old, new).problems


def test_the_served_document_takes_nothing_from_a_client_of_the_repaired_reference():
    assert missing(REPAIRED, SERVED) == []


@pytest.mark.parametrize("document", [REPAIRED, SERVED], ids=["repaired", "served"])
def test_the_one_thing_changed_for_a_client_of_the_original_is_the_null_it_announces(document):
    original = copy.deepcopy(ORIGINAL)
    original["components"]["schemas"]["Error"] = original["components"]["responses"].pop("Error")
    assert missing(original, document) == ["get /v1/jobs/available 200: nullable changed"]


def at(document: Document, path: str) -> Any:
    node: Any = document
    for key in path.split(" "):
        node = node[int(key) if isinstance(node, list) else key]
    return node


MUTATIONS = {
    "path removed": lambda d: d["paths"].pop("/explorer/stats"),
    "method removed": lambda d: d["paths"]["/v1/jobs"].pop("get"),
    "status removed": lambda d: at(d, "paths /v1/jobs/{job_id}/claim post responses").pop("409"),
    "answer without a body": lambda d: at(d, "paths /v1/jobs post responses 201").pop("content"),
    "parameter removed": lambda d: at(d, "paths /v1/jobs get parameters").pop(0),
    "parameter newly required": lambda d: at(d, "paths /v1/jobs get parameters 3").update(
        required=True
    ),
    "parameter bounded": lambda d: at(d, "paths /explorer/blocks get parameters 0 schema").update(
        maximum=100
    ),
    "parameter value removed": lambda d: at(
        d, "paths /v1/jobs get parameters 0 schema enum"
    ).remove("failed"),
    "parameter default changed": lambda d: at(d, "paths /v1/jobs get parameters 1 schema").update(
        default=50
    ),
    "body newly required": lambda d: at(d, "paths /v1/jobs/{job_id}/cancel post").update(
        requestBody={"required": True, "content": {}}
    ),
    "body of another type": lambda d: at(d, "paths /v1/jobs post requestBody content").pop(
        "application/json"
    ),
    "key newly needed": lambda d: at(d, "paths /v1/jobs get").update(security=[{"ApiKey": []}]),
    "key no longer taken": lambda d: at(d, "paths /v1/jobs post").update(security=[{"Bearer": []}]),
    "key in another header": lambda d: at(d, "components securitySchemes ApiKey").update(name="K"),
    "field removed": lambda d: at(d, "components schemas Receipt properties").pop("price"),
    "field of another type": lambda d: at(d, "components schemas Receipt properties price").update(
        type="string"
    ),
    "nested field removed": lambda d: at(
        d, "components schemas MinerRegistration properties gpu_info properties"
    ).pop("memory"),
    "item of another type": lambda d: at(
        d, "components schemas MinerRegistration properties capabilities items"
    ).update(type="object"),
    "status added": lambda d: at(d, "components schemas Job properties status enum").append(
        "expired"
    ),
    "status removed from Job": lambda d: at(
        d, "components schemas Job properties status enum"
    ).remove("failed"),
    "request field newly required": lambda d: at(
        d, "components schemas JobRequest required"
    ).append("model"),
    "request field bounded": lambda d: at(
        d, "components schemas JobParams properties max_tokens"
    ).update(maximum=8192),
    "request text bounded": lambda d: at(
        d, "components schemas JobRequest properties prompt"
    ).update(minLength=1),
    "request values listed": lambda d: at(
        d, "components schemas JobRequest properties model"
    ).update(enum=["llama3.2"]),
    "request closed": lambda d: at(d, "components schemas JobResult").update(
        additionalProperties=False
    ),
    "request default changed": lambda d: at(
        d, "components schemas JobRequest properties model"
    ).update(default="other"),
    "answer may be null": lambda d: at(d, "components schemas Job properties result").update(
        nullable=True
    ),
    "time no longer a time": lambda d: at(d, "components schemas Block properties timestamp").pop(
        "format"
    ),
}


@pytest.mark.parametrize("mutate", MUTATIONS.values(), ids=MUTATIONS.keys())
def test_the_comparison_notices(mutate):
    mutant = copy.deepcopy(SERVED)
    mutate(mutant)
    assert mutant != SERVED
    assert missing(REPAIRED, mutant) != []


@pytest.mark.parametrize("document", [REPAIRED, SERVED], ids=["repaired", "served"])
def test_every_reference_inside_a_document_points_somewhere(document):
    def references(node: Any) -> list[str]:
        if isinstance(node, list):
            return [ref for child in node for ref in references(child)]
        if not isinstance(node, dict):
            return []
        own = [node["$ref"]] if "$ref" in node else []
        return own + [ref for child in node.values() for ref in references(child)]

    found = references(document)
    assert found
    for reference in found:
        at(document, reference.removeprefix("#/").replace("/", " "))


def routes() -> list[Any]:
    settings = ApiSettings(mode="dev", version="0", default_model="m")
    return build_api(
        None,
        None,
        settings,
        tree=None,
        checkpoint=lambda: None,
        genesis=b"{}",
        clock_ms=lambda: 0,
        make_request_id=lambda: "id",
    )


def operations(found: list[Any]) -> set[tuple[str, str]]:
    return {
        (method.lower(), route.path.replace(":path}", "}"))
        for route in found
        if isinstance(route, Route) and isinstance(route.endpoint, Resource)
        for method in route.endpoint.operations
    }


def test_what_is_served_is_documented_and_what_is_documented_is_served():
    documented = {(method, path) for path, methods in SERVED["paths"].items() for method in methods}
    found = routes()
    (mount,) = [route for route in found if isinstance(route, Mount)]
    assert operations(found) == documented
    assert operations(mount.routes) == documented


def test_every_operation_says_that_it_may_be_refused_for_its_rate_and_its_key():
    for path, methods in SERVED["paths"].items():
        for method, operation in methods.items():
            assert {"401", "429"} <= operation["responses"].keys(), f"{method} {path}"


def test_operation_ids_are_distinct_so_that_generators_can_name_methods():
    ids = [op["operationId"] for ops in SERVED["paths"].values() for op in ops.values()]
    assert len(set(ids)) == len(ids)


def test_the_error_codes_are_one_closed_set_in_code_document_and_docs():
    code = re.compile(r"\b(?:[A-Z]+_)+[A-Z]+\b")
    described = set(
        code.findall(at(SERVED, "components schemas Error properties error_code description"))
    )
    table = {
        word
        for line in (ROOT / "docs/api.md").read_text(encoding="utf-8").splitlines()
        if re.match(r"\| \d{3} \|", line)
        for word in code.findall(line)
    }
    assert described == table == set(STATUSES)


def test_every_code_that_is_raised_has_a_status():
    raised = re.compile(
        r"(?:MarketError|RequestError)\(\s*\"([A-Z_]+)\"|(?:lost|otherwise)=\"([A-Z_]+)\""
    )
    found = {
        first or second
        for folder in ("api", "ledger", "node")
        for path in (ROOT / folder).rglob("*.py")
        for first, second in raised.findall(path.read_text(encoding="utf-8"))
    }
    assert {"JOB_NOT_FOUND", "VALIDATION_FAILED", "JOB_LEASE_LOST"} <= found
    assert found <= set(STATUSES)


def test_the_docs_state_the_status_of_each_code():
    rows = re.findall(
        r"^\| (\d{3}) \| ([A-Z_, ]+) \|", (ROOT / "docs/api.md").read_text("utf-8"), re.M
    )
    stated = {code: int(status) for status, codes in rows for code in codes.split(", ")}
    assert stated == dict(STATUSES)
