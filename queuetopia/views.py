"""Pages for machines. Who may see them is for the project to decide: names of queues and errors are on them."""

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from .monitoring import health as monitoring
from .registry import registered
from .text import visible


@never_cache
@require_safe
def health(request: HttpRequest) -> HttpResponse:
    """Answer what ``manage.py queuetopia status --check`` says: 200 and ``ok``, or 503 and a line for each problem.

    With ``Accept: application/json`` the problems are the JSON that the command writes.
    """
    found = monitoring.problems(registered())
    code = 503 if found else 200
    if request.get_preferred_type(["text/plain", "application/json"]) == "application/json":
        return JsonResponse({"problems": found}, status=code)
    lines = [visible(problem["message"]) for problem in found] or ["ok"]
    return HttpResponse("\n".join(lines) + "\n", status=code, content_type="text/plain; charset=utf-8")
