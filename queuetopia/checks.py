"""System checks: what a setting or a declaration would break later, each problem with its remedy.

None raises, whatever the settings hold; only ``check_tables`` reads a database.
"""

import sys
import unicodedata
from collections import defaultdict
from collections.abc import Container, Mapping
from difflib import get_close_matches
from inspect import signature
from typing import Any

from django.apps import apps
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.db import DEFAULT_DB_ALIAS, DatabaseError, Error, connections, router
from django.db.migrations.loader import MigrationLoader

from . import conf
from .backends import backend_class
from .backends.checks import troubles
from .backends.trouble import database_trouble
from .declaration import Queuetopia
from .jobs import schedule_problems
from .models import Scope
from .params import text_problem
from .performer import (
    PERFORMER_HINT,
    Performer,
    action_methods,
    alias_problems,
    call_problem,
    has_own_perform,
    hook_problem,
    hooks,
    known_actions,
    lists_actions,
    method_problem,
    mistaken_for_job,
    own_actions,
    performer_problem,
)
from .registry import forgotten, registered
from .times import WITHOUT_ZONES
from .times import trouble as trouble_with_times

MAX_SCOPE = 128


def _problem(number, message, hint):
    kind = checks.Error if number.startswith("E") else checks.Warning
    return kind(message, hint=hint, id=f"queuetopia.{number}")


def _label(cls):
    return f"{cls.__module__}.{cls.__qualname__}"


def _nearest(name, known):
    """Return the hint for a name that is not among ``known``."""
    known = [text for text in known if isinstance(text, str)]
    close = get_close_matches(str(name), known, n=1)
    return f"Did you mean {close[0]!r}?" if close else f"Known are: {', '.join(sorted(known)) or 'none'}."


# Settings


@checks.register("queuetopia")
def check_settings(app_configs, **kwargs):
    return [*_no_dicts(), *_unknown_keys(), *_bad_values(), *_undeclared_scopes()]


def _settings():
    try:
        return conf.user_settings()
    except ImproperlyConfigured:
        return {}


def _part(name):
    """Return a setting that is a dict, or an empty one."""
    part = _settings().get(name)
    return part if isinstance(part, dict) else {}


def _no_dicts():
    found = {}
    for read, *args in (
        [conf.user_settings],
        [conf.default_options],
        *([conf.scope_options, scope] for scope in ("", *_part("SCOPES"))),
    ):
        try:
            read(*args)
        except ImproperlyConfigured as exc:
            found[str(exc)] = _problem("E001", str(exc), 'Write it as {"name": value, …}, or leave it out.')
    return found.values()


def _unknown_keys():
    for key in _settings():
        if key not in conf.SETTINGS:
            yield _problem("E002", f"QUEUETOPIA has the unknown key {key!r}.", _nearest(key, conf.SETTINGS))


def _bad_values():
    for key, clean in conf.CLEAN_SETTINGS.items():
        if key in _settings():
            try:
                clean(_settings()[key])
            except (ValueError, TypeError, ArithmeticError) as exc:
                hint = f"Mend it, or leave it out for {conf.SETTINGS[key]!r}."
                yield _problem("E003", f"QUEUETOPIA[{key!r}]: {exc}.", hint)


def _undeclared_scopes():
    declared = [queuetopia.scope for queuetopia in registered()]
    for part, has in (("SCOPES", "has options for"), ("ENABLED", "names")):
        for scope in _part(part):
            if scope not in declared:
                message = f"QUEUETOPIA[{part!r}] {has} {scope!r}, a scope that no class declares."
                yield _problem("W001", message, _nearest(scope, declared))


# Options


@checks.register("queuetopia")
def check_options(app_configs, **kwargs):
    problems = [problem for where, options in _option_sources() for problem in _bad_options(where, options)]
    return [*problems, *_bad_deciders(), *_unordered()]


def _option_sources():
    """Yield (where, options as written) for each place that can hold options."""
    yield "QUEUETOPIA['DEFAULTS']", _part("DEFAULTS")
    for scope, options in _part("SCOPES").items():
        yield f"QUEUETOPIA['SCOPES'][{scope!r}]", options if isinstance(options, dict) else {}
    for base in dict.fromkeys(base for queuetopia in registered() for base in queuetopia.__mro__):
        if base not in Queuetopia.__mro__:
            yield _label(base), {name: value for name, value in vars(base).items() if _is_option(name, value)}


def _is_option(name, value):
    """True for an option, and for what can only be meant as one: a plain value with a lower-case name."""
    if name in conf.OPTIONS or name in ("performer", "scope", "schedules"):
        return name in conf.OPTIONS
    return name[:1].islower() and not callable(value) and not hasattr(type(value), "__get__")


def _bad_options(where, options):
    for name, value in options.items():
        if name not in conf.OPTIONS:
            yield _problem("E004", f"{where} has the unknown option {name!r}.", _nearest(name, conf.OPTIONS))
            continue
        try:
            conf.OPTIONS[name].clean(value)
        except (ValueError, TypeError, ArithmeticError) as exc:
            hint = f"Mend it, or leave it out for {conf.OPTIONS[name].default!r}."
            yield _problem("E005", f"{where}: option {name!r}: {exc}.", hint)


def _bad_deciders():
    """Yield a problem for each method that ``on_exhausted`` names and that cannot be called."""
    for queuetopia in registered():
        performer = queuetopia.performer
        try:
            value = queuetopia.option("on_exhausted")
        except (ImproperlyConfigured, TypeError):
            continue  # It cannot be used, or the scope cannot: said elsewhere.
        if not isinstance(value, str) or conf.is_step(value) or performer_problem(performer):
            continue
        if not hasattr(performer, value):
            trouble = f"is none of {', '.join(map(repr, conf.ON_EXHAUSTED))}, and no method of {_label(performer)}"
        elif problem := call_problem(performer, value, ["job", "exc"]):
            trouble = f"is a method of {_label(performer)} that {problem}"
        else:
            continue
        hint = f"Write def {value}(self, job, exc) there, or one of the three names."
        yield _problem("E005", f"{queuetopia.label}: option 'on_exhausted': {value!r} {trouble}.", hint)


def _unordered():
    """Yield a problem for each option about order of a class whose jobs need none."""
    for queuetopia in registered():
        try:
            if queuetopia.option("ordered"):
                continue
            commit_ordered, spacing = queuetopia.option("commit_ordered"), queuetopia.option("spacing")
        except (ImproperlyConfigured, TypeError, ValueError, ArithmeticError):
            continue  # It cannot be used: said elsewhere.
        if commit_ordered:
            message = f"{queuetopia.label}: commit_ordered = True asks for an order, and ordered = False for none."
            yield _problem("E018", message, "Remove one of the two.")
        if spacing:
            message = (
                f"{queuetopia.label}: spacing is between the jobs of one queue; with ordered = False each has its own."
            )
            yield _problem("W013", message, "Remove it. rate limits how many jobs of the class start in a span.")


# Scopes


@checks.register("queuetopia")
def check_scopes(app_configs, **kwargs):
    problems, classes = [], defaultdict(list)
    for queuetopia in registered():
        if trouble := _scope_trouble(queuetopia.scope):
            hint = f'Set scope to a text of 1 to {MAX_SCOPE} characters, as in scope = "shop.mail".'
            problems.append(_problem("E006", f"{queuetopia.label}: its scope {trouble}.", hint))
        else:
            classes[queuetopia.scope].append(queuetopia.label)
    for scope, labels in classes.items():
        if len(labels) > 1:
            message = f"{' and '.join(labels)} have one scope, {scope!r}: their jobs would mix."
            problems.append(_problem("E007", message, "Give each class a scope of its own."))
    for scopes in _alike(classes):
        message = f"The scopes {scopes} are different ones, and look alike: jobs of one are no jobs of the other."
        problems.append(_problem("W012", message, "Rename one, in more than case, spaces or forms of a letter."))
    return problems


def _alike(names):
    """Yield the names that differ in case, white space or Unicode form only, as a text."""
    groups = defaultdict(list)
    for name in names:
        groups[" ".join(unicodedata.normalize("NFKC", name).casefold().split())].append(name)
    for group in groups.values():
        if len(group) > 1:
            yield " and ".join(ascii(name) for name in sorted(group))


def _scope_trouble(scope):
    if not isinstance(scope, str):
        return f"is a {type(scope).__name__}, not a str"
    if not 1 <= len(scope) <= MAX_SCOPE:
        return f"has {len(scope)} characters"
    if scope == Scope.EVERYTHING:
        return "stands for all scopes, where everything is paused"
    return text_problem(scope)


# Performers


@checks.register("queuetopia")
def check_performers(app_configs, **kwargs):
    problems, performers = [], {}
    for queuetopia in registered():
        performer: Any = queuetopia.performer
        if trouble := performer_problem(performer):
            problems.append(_problem("E008", f"{queuetopia.label}: {trouble}.", PERFORMER_HINT))
        else:
            performers[performer] = _label(performer)
    for performer, label in performers.items():
        problems += [*_bad_methods(performer, label), *_doubled(performer), *_bad_actions(performer, label)]
        problems += [*_bad_hooks(performer, label), *_misspelt_hooks(performer, label)]
        problems += [*_actions_alike(performer, label), *_bad_aliases(performer, label)]
    return [*problems, *_forgotten_performers()]


def _forgotten_performers():
    for queuetopia in forgotten():
        hint = f"{PERFORMER_HINT} If it is a base for others, write performer = None."
        yield _problem("W010", f"{queuetopia.label} has no performer, so that it can have no jobs.", hint)


def _bad_methods(performer, label):
    hint = "Write it as a plain method, as in def send_mail(self, job, email_address, body)."
    for action, method in action_methods(performer).items():
        if method in hooks():
            message = f"{label}.{method} is marked with @action, and Queuetopia calls {method}() for something else."
            yield _problem("E016", message, f'Rename it; @action("{action}") keeps the name of the action.')
        elif trouble := method_problem(performer, method):
            yield _problem("E009", f"{label}.{method} cannot run action {action!r}: {trouble}.", hint)
        elif name := mistaken_for_job(performer, method):
            message = f"{label}.{method}: its first parameter, {name!r}, receives the job, not a param of that name."
            hint = f"Write def {method}(self, job, {name}), or name the first parameter job (_job if it is not used)."
            yield _problem("W008", message, hint)


def _bad_hooks(performer, label):
    marked = action_methods(performer).values()
    for hook in hooks():
        if hook not in marked and (trouble := hook_problem(performer, hook)):
            hint = f"Write it as def {hook}{signature(getattr(Performer, hook))}."
            yield _problem("E009" if hook == "perform" else "E017", f"{label}.{hook} {trouble}.", hint)


def _misspelt_hooks(performer, label):
    known = [*hooks(), "actions", "aliases"]
    for base in performer.__mro__[: performer.__mro__.index(Performer)]:
        for name in vars(base):
            close = get_close_matches(name.lower(), known, n=1, cutoff=0.8)
            if (
                close
                and name not in known
                and not name.startswith("_")
                and name not in action_methods(performer).values()
            ):
                message = f"{label}.{name} is nothing that Queuetopia calls, and looks like {close[0]}."
                yield _problem("W009", message, f"Name it {close[0]}, or something else that does not resemble it.")


def _actions_alike(performer, label):
    listed = performer.actions if lists_actions(performer) else ()
    names = {name for name in (*listed, *action_methods(performer)) if isinstance(name, str)}
    for actions in _alike(names):
        message = f"{label}: the actions {actions} are different ones, and look alike."
        yield _problem("W012", message, "Rename one, in more than case, spaces or forms of a letter.")


def _bad_aliases(performer, label):
    hint = 'Write {what an action was called: what it is called now}, as in aliases = {"send_mail": "send"}.'
    for problem in alias_problems(performer):
        yield _problem("E021", f"{label}.{problem}.", hint)


def _doubled(performer):
    for base in performer.__mro__:
        methods = defaultdict(list)
        for action, method in own_actions(base):
            methods[action].append(method)
        for action, names in methods.items():
            if len(names) > 1:
                message = f"{_label(base)} has several methods for action {action!r}: {', '.join(names)}."
                yield _problem("E010", message, "Only the last would run: give each a name of its own.")


def _bad_actions(performer, label):
    listed = performer.actions
    if not lists_actions(performer) and has_own_perform(performer) and _answers(listed):
        return
    if not lists_actions(performer) or not all(isinstance(n, str) for n in listed):
        message = f"{label}.actions is {listed!r}, no sequence of names."
        yield _problem("E011", message, 'Write it as actions = ("send_mail",).')
    elif not has_own_perform(performer):
        if not known_actions(performer):
            message = f"{label} has no action: create_job would refuse every job."
            yield _problem("W003", message, "Mark its methods with @action, or write perform(self, job).")
        for name in listed:
            if name not in action_methods(performer):
                hint = "Mark its method with @action; actions is for a perform of your own."
                yield _problem("E011", f"{label}.actions lists {name!r}, and no method is that action.", hint)
    elif known_actions(performer) is None:
        message = f"{label} has its own perform and no actions: create_job cannot refuse a wrong action."
        yield _problem("W002", message, 'List what it performs: actions = ("send_mail", …).')


def _answers(actions):
    return isinstance(actions, Container) and not isinstance(actions, str | bytes | Mapping)


# Schedules


@checks.register("queuetopia")
def check_schedules(app_configs, **kwargs):
    return [
        _problem("E020", f"{queuetopia.label}: {_which(name, problem.argument)}: {problem.cause}.", problem.remedy)
        for queuetopia in registered()
        for name, problem in schedule_problems(queuetopia)
    ]


def _which(name, argument):
    return argument if name is None else f"schedule {name!r}, {argument}"


# Databases


@checks.register("queuetopia")
def check_databases(app_configs, **kwargs):
    aliases, problems = _databases()
    for alias, labels in aliases.items():
        used = f"Database {alias!r} of {', '.join(labels)}"
        problems += _unusable(alias, used) or [*_kept_out(alias, used), *_bad_server(alias, used)]
    return problems


@checks.register("queuetopia")
def check_times(app_configs, **kwargs):
    if not conf.uses_time_zones():  # migrations would fail for this, too: without any class
        message, hint = WITHOUT_ZONES
        return [_problem("E015", f"Queuetopia {message}.", hint)]
    aliases = [alias for alias in _databases()[0] if not _unusable(alias, "")]
    return [
        _problem("E015", f"Database {alias!r} {found[0]}.", found[1])
        for alias in dict.fromkeys([*aliases, *filter(None, map(_lock_alias, aliases))])
        if (found := trouble_with_times(connections[alias]))
    ]


def _lock_alias(alias):
    """Return the alias whose connection a node uses instead, if there is one."""
    locks = _settings().get("LOCK_DATABASE")
    direct = locks.get(alias) if isinstance(locks, dict) else locks
    return direct if isinstance(direct, str) and direct in connections else None


def _databases():
    """Return {alias: labels of its classes}, and the problems of classes without a known alias."""
    aliases, problems = defaultdict(list), []
    for queuetopia in registered():
        try:
            aliases[queuetopia.database()].append(queuetopia.label)
        except (ImproperlyConfigured, TypeError):
            continue  # An option or the scope is wrong: their checks say so.
        except Exception as exc:  # The routers are the project's.
            message = f"DATABASE_ROUTERS cannot tell the database of {queuetopia.label}: {exc!r}."
            problems.append(_problem("E014", message, "Mend the router, or set the option using."))
    return aliases, problems


def _unusable(alias, used):
    hint = "Use PostgreSQL, MySQL, MariaDB or SQLite with its driver, or another alias by the option using."
    try:
        backend_class(alias)
        return []
    except Exception as exc:  # An ENGINE may raise anything when it is imported.
        return [_problem("E012", f"{used} cannot be used: {str(exc).removesuffix('.')}.", hint)]


def _kept_out(alias, used):
    try:
        models = apps.get_app_config("queuetopia").get_models()
        names = [model.__name__ for model in models if not router.allow_migrate_model(alias, model)]
    except Exception as exc:  # The routers are the project's.
        names = [repr(exc)]
    if names:
        message = f"{used}: DATABASE_ROUTERS keep Queuetopia's tables out of it: {', '.join(names)}."
        hint = f"Let allow_migrate({alias!r}, 'queuetopia') be True, or set the option using."
        yield _problem("E014", message, hint)


def _bad_server(alias, used):
    locks = _settings().get("LOCK_DATABASE")
    has_lock_database = alias in locks if isinstance(locks, dict) else locks is not None
    for number, trouble, hint in troubles(connections[alias], has_lock_database=has_lock_database):
        yield _problem(number, f"{used} {trouble}.", hint)


@checks.register(checks.Tags.database)
def check_tables(app_configs, databases=None, **kwargs):
    """Warn of missing tables; an error would stop ``migrate`` from making them, a warning would only puzzle it."""
    if sys.argv[1:2] == ["migrate"]:
        return []
    aliases = [alias for alias in _databases()[0] if alias in (databases or ()) and not _unusable(alias, "")]
    return [problem for alias in aliases for problem in list(_missing_tables(alias)) or _spent_sequences(alias)]


def _missing_tables(alias):
    try:
        missing = _missing(connections[alias])
    except Exception as exc:  # The network, other apps' migrations.
        trouble = database_trouble(exc).message if isinstance(exc, Error) else f"{str(exc).strip('.')}."
        hint = f"Check DATABASES[{alias!r}]."
        yield _problem("W007", f"Database {alias!r} does not say what tables it has. {trouble}", hint)
        return
    if missing:
        hint = f"Run: manage.py migrate queuetopia --database {alias}"
        yield _problem("W007", f"Database {alias!r} lacks Queuetopia's {', '.join(missing)}.", hint)


def _spent_sequences(alias):
    try:
        tables = backend_class(alias)(alias).behind_their_tables()
    except DatabaseError:  # no rights to read a table, say
        return
    for table in tables:
        message = f"Database {alias!r}: the sequence of {table} is behind its rows, so new rows get ids that are taken."
        hint = "Run: manage.py sqlsequencereset queuetopia | manage.py dbshell"
        yield _problem("W011", message, f"{hint}{'' if alias == DEFAULT_DB_ALIAS else f' --database {alias}'}")


def _missing(connection):
    """Return the names of our tables, or else of our migrations, that the database does not have."""
    tables = {model._meta.db_table for model in apps.get_app_config("queuetopia").get_models()}
    loader = MigrationLoader(connection)
    leaves = loader.graph.leaf_nodes("queuetopia")
    steps = {step for leaf in leaves for step in loader.graph.forwards_plan(leaf)}
    unapplied = [name for app, name in steps.difference(loader.applied_migrations) if app == "queuetopia"]
    return sorted(tables.difference(connection.introspection.table_names())) or sorted(unapplied)
