"""What goes over the wire: calls as they come in, replies and errors in the form that each service uses."""

import json
import re
import uuid
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property
from urllib.parse import parse_qsl, urlencode
from xml.sax.saxutils import escape

from moto.core.parse import PROTOCOL_PARSERS
from moto.core.utils import get_service_model

JSON_SERVICES = {"ssm", "pricing", "servicequotas"}

# Everything else is 400.
STATUS = {
    "RequestLimitExceeded": 503, "Throttling": 503, "ThrottlingException": 400, "RequestThrottled": 503,
    "Unavailable": 503, "ServiceUnavailable": 503, "InternalError": 500, "InternalFailure": 500,
    "InsufficientInstanceCapacity": 500, "InsufficientHostCapacity": 500, "UnauthorizedOperation": 403,
    "AccessDenied": 403, "AuthFailure": 401, "OptInRequired": 403, "RequestExpired": 400, "DryRunOperation": 412,
}


class ApiError(Exception):
    """An answer that is an error."""

    def __init__(self, code, message, status=None):
        super().__init__(f"{code}: {message}")
        self.code, self.message = code, message
        self.status = status or STATUS.get(code, 400)


@dataclass
class Reply:
    status: int
    headers: dict
    body: bytes
    code: str | None = None


@dataclass
class Call:
    """One request of the client's."""

    service: str
    region: str
    action: str
    method: str
    path: str
    query: str
    headers: dict
    body: bytes
    form: dict = field(default_factory=dict)
    n: int = 0
    entry: dict = field(default_factory=dict)

    @classmethod
    def read(cls, method, path, query, headers, body):
        service, region = _scope(headers.get("authorization", ""))
        form, action = {}, headers.get("x-amz-target", "").rpartition(".")[2]
        if not action:
            # The encoding of a form is ASCII, and what is no form has no action.
            text = body.decode("utf-8", "replace") or query
            form = dict(parse_qsl(text, keep_blank_values=True))
            action = form.get("Action", "")
        return cls(service, region, action, method, path, query, headers, body, form)

    def forget(self, prefix):
        """Drops parameters, as if the client had not sent them."""
        self.form = {key: value for key, value in self.form.items() if not key.startswith(prefix)}
        self.body = urlencode(self.form).encode() if self.form else self.body
        self.__dict__.pop("params", None)

    @property
    def is_json(self):
        return self.service in JSON_SERVICES

    @cached_property
    def params(self):
        """The parameters, nested and typed as the service's model has them."""
        if self.is_json:
            return json.loads(self.body or b"{}")
        operation = get_service_model(self.service).operation_model(self.action)
        parser = PROTOCOL_PARSERS[operation.service_model.protocol](operation, map_type=dict)
        return parser.parse({"values": self.form, "method": "POST", "headers": {}, "body": b"", "url_path": "/"})

    @property
    def flat_params(self):
        if self.is_json:
            try:
                return json.loads(self.body or b"{}")
            except ValueError:
                return {}
        return {key: value for key, value in self.form.items() if key not in ("Action", "Version")}


    @property
    def access_key(self):
        """Whose request it is, as the signature names them."""
        return self.headers.get("authorization", "").partition("Credential=")[2].partition("/")[0]


def _scope(authorization):
    """Service and region, as the signature names them."""
    scope = authorization.partition("Credential=")[2].partition(",")[0].split("/")
    return (scope[3].lower(), scope[2]) if len(scope) == 5 else ("ec2", "us-east-1")


def success(call, result):
    """The reply to a call that went well; `result` is a dictionary in the shape of the service's model."""
    if call.is_json:
        return Reply(200, {"Content-Type": "application/x-amz-json-1.1", **_id()[1]}, json.dumps(result).encode())
    operation = get_service_model("ec2").operation_model(call.action)
    request, headers = _id()
    out = ['<?xml version="1.0" encoding="UTF-8"?>\n'
           f'<{call.action}Response xmlns="http://ec2.amazonaws.com/doc/2016-11-15/">'
           f"<requestId>{request}</requestId>"]
    if operation.output_shape:
        _structure(out, operation.output_shape, result)
    out.append(f"</{call.action}Response>")
    return Reply(200, {"Content-Type": "text/xml;charset=UTF-8", **headers}, "".join(out).encode())


def failure(call, error):
    request, headers = _id()
    code, message = error.code, error.message
    if call.is_json:
        body = json.dumps({"__type": code, "message": message})
        headers |= {"Content-Type": "application/x-amz-json-1.1", "x-amzn-ErrorType": code}
        return Reply(error.status, headers, body.encode(), code)
    headers["Content-Type"] = "text/xml;charset=UTF-8"
    inner = f"<Code>{escape(code)}</Code><Message>{escape(message)}</Message>"
    if call.service == "ec2":
        body = f"<Response><Errors><Error>{inner}</Error></Errors><RequestID>{request}</RequestID></Response>"
    else:
        kind = "Sender" if error.status < 500 else "Receiver"
        body = (f"<ErrorResponse><Error><Type>{kind}</Type>{inner}</Error>"
                f"<RequestId>{request}</RequestId></ErrorResponse>")
    return Reply(error.status, headers, f'<?xml version="1.0" encoding="UTF-8"?>\n{body}'.encode(), code)


def _id():
    request = str(uuid.uuid4())
    return request, {"x-amzn-RequestId": request}


def _structure(out, shape, value):
    members = shape.members
    for name, item in value.items():
        if item is not None and name in members:
            member = members[name]
            tag = member.serialization.get("name", name)
            out.append(f"<{tag}>")
            _value(out, member, item)
            out.append(f"</{tag}>")


def _value(out, shape, value):
    # moto's serializer does the same from any object, but takes milliseconds for one instance.
    if shape.type_name == "structure":
        _structure(out, shape, value)
    elif shape.type_name == "list":
        for item in value:
            out.append("<item>")
            _value(out, shape.member, item)
            out.append("</item>")
    elif isinstance(value, bool):
        out.append("true" if value else "false")
    elif isinstance(value, datetime):
        moment = value.astimezone(timezone.utc) if value.tzinfo else value
        out.append(moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z")
    else:
        out.append(escape(str(value)))


def matches(filters, facts, kind):
    """Whether something passes EC2's filters. `facts` maps names of filters to a function of the thing."""

    def passes(thing):
        for wanted in filters:
            name, values = wanted.get("Name", ""), wanted.get("Values", [])
            if name.startswith("tag:"):
                tags = facts["tags"](thing)
                has = [tags[name[4:]]] if name[4:] in tags else []
            elif name == "tag-key":
                has = list(facts["tags"](thing))
            else:
                has = facts[name](thing)
                has = has if isinstance(has, list) else [has]
            if not any(_like(str(one), value) for one in has if one is not None for value in values):
                return False
        return True

    for wanted in filters:
        name = wanted.get("Name", "")
        if not (name.startswith("tag:") or name == "tag-key" or (name in facts and name != "tags")):
            raise ApiError("InvalidParameterValue", f"The filter '{name}' is invalid for {kind}")
    return passes


def _like(text, pattern):
    if "*" not in pattern and "?" not in pattern:
        return text == pattern
    expression = "".join({"*": ".*", "?": "."}.get(c, re.escape(c)) for c in pattern)
    return re.fullmatch(expression, text, re.DOTALL) is not None


def page(things, params, most=1000):
    """One page of a listing, and the token for the next."""
    size = min(int(params.get("MaxResults") or most), most)
    token = params.get("NextToken")
    try:
        start = int(token.removeprefix("page-")) if token else 0
    except ValueError:
        raise ApiError("InvalidNextToken", f"The token '{token}' is not valid") from None
    end = start + size
    return things[start:end], (f"page-{end}" if end < len(things) else None)


def tags_for(specifications, kind):
    """The tags that a request has for one kind of resource."""
    return {tag["Key"]: tag.get("Value", "") for specification in specifications or []
            if specification.get("ResourceType") == kind for tag in specification.get("Tags", [])}


def tag_list(tags):
    return [{"Key": key, "Value": value} for key, value in tags.items()]
