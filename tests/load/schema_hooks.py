"""Keeps what schemathesis makes up short enough to be computed in minutes; loaded by SCHEMATHESIS_HOOKS."""

import schemathesis

BUDGET = 8
BUDGETS = {"max_tokens", "max_completion_tokens", "max_output_tokens", "min_tokens", "num_predict"}
CHOICES = 4


def is_count(value):
    return isinstance(value, int) and not isinstance(value, bool)


@schemathesis.hook
def map_body(context, body):
    """Small budgets, few choices, and now and then the model that there is."""
    if not isinstance(body, dict):
        return body
    body = dict(body)
    for name in BUDGETS & body.keys():
        if is_count(body[name]) and body[name] > BUDGET:
            body[name] = BUDGET
    if is_count(body.get("n")) and body["n"] > CHOICES:
        body["n"] = CHOICES
    # A name that nobody has is a 404 before anything else is looked at.
    if isinstance(body.get("model"), str) and len(str(body)) % 4:
        del body["model"]
    return body
