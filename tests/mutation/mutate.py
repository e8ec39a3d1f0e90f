"""Every change of one operator, constant, comparison, call or statement of a source file, one at a time.

Left as they are: strings, annotations, decorators, and what a class derives from.
"""

import ast
import copy
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

OPERATORS: dict[type[ast.AST], tuple[type[ast.AST], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div,),
    ast.Div: (ast.Mult,),
    ast.FloorDiv: (ast.Mult,),
    ast.Mod: (ast.Mult,),
    ast.BitAnd: (ast.BitOr,),
    ast.BitOr: (ast.BitAnd,),
    ast.And: (ast.Or,),
    ast.Or: (ast.And,),
}
"""What each becomes. A comparison moves its bound, and turns into its opposite."""

PAIRS = ["min max", "any all", "minimum maximum", "argmin argmax", "ceil floor", "append appendleft", "pop popleft"]
NAMES = {one: other for pair in map(str.split, PAIRS) for one, other in (pair, pair[::-1])}
"""Functions and methods that are called instead of each other."""

UNTOUCHED = {"annotation", "returns", "decorator_list", "bases", "keywords_of_class", "pattern", "format_spec"}
BODIES = ("body", "orelse", "finalbody", "handlers", "cases")


@dataclass(frozen=True)
class Mutant:
    """One change. All but the source say which it is, wherever the lines of the file move to."""

    file: str
    where: str
    """The class and function, or `module`."""
    old: str
    new: str
    """The statement before and after, without what it contains."""
    number: int
    """Of changes that read alike."""
    source: str = field(compare=False, repr=False)

    @property
    def name(self) -> tuple[str, str, str, str, int]:
        return self.file, self.where, self.old, self.new, self.number


def mutants(file: str, source: str) -> Iterator[Mutant]:
    """In the order of the file."""
    tree = ast.parse(source)
    seen: Counter[tuple[str, str, str]] = Counter()
    for place in _places(tree, tree.body[0], "module", lambda node: None):
        old = _head(place.statement)
        for replacement in list(_replacements(place)):
            place.put(replacement)
            head = replacement if isinstance(replacement, ast.stmt) else place.statement
            new = _head(head)
            whole = ast.unparse(ast.fix_missing_locations(tree))
            place.put(place.node)
            what = (place.where, old, new)
            yield Mutant(file, *what, seen[what], whole)
            seen[what] += 1


@dataclass(frozen=True)
class _Place:
    """A node and where it stands."""

    node: ast.AST
    statement: ast.stmt
    where: str
    put: Callable[[ast.AST], None]
    """Puts another node in its place."""


def _places(node: ast.AST, statement: ast.stmt, where: str, put: Callable[[ast.AST], None]) -> Iterator[_Place]:
    statement = node if isinstance(node, ast.stmt) else statement
    yield _Place(node, statement, where, put)
    if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        where = node.name if where == "module" else f"{where}.{node.name}"
    for name, value in ast.iter_fields(node):
        if name in UNTOUCHED or (isinstance(node, ast.ClassDef) and name == "keywords"):
            continue
        if isinstance(value, ast.AST):
            yield from _places(value, statement, where, _into_field(node, name))
        elif isinstance(value, list):
            for index, child in enumerate(value):
                if isinstance(child, ast.AST):
                    yield from _places(child, statement, where, _into_list(value, index))


def _into_field(node: ast.AST, name: str) -> Callable[[ast.AST], None]:
    return lambda other: setattr(node, name, other)


def _into_list(values: list[ast.AST], index: int) -> Callable[[ast.AST], None]:
    return lambda other: values.__setitem__(index, other)


def _replacements(place: _Place) -> Iterator[ast.AST]:
    node = place.node
    yield from _other_operators(place)
    yield from _other_conditions(node)
    if _can_go(place):
        yield ast.Pass()
    match node:
        case ast.UnaryOp():
            yield node.operand
        case ast.Constant(bool() as value):
            yield ast.Constant(not value)
        case ast.Constant(int() as value):
            yield ast.Constant(value + 1)
        case ast.Constant(float() as value):
            yield ast.Constant(2 * value or 1.0)
        case ast.Slice():
            for bound in ("lower", "upper"):
                if getattr(node, bound) is not None:
                    yield _with(node, bound, None)
        case ast.Call(func=ast.Name(id=name)) if name in NAMES:
            yield _with(node, "func", ast.Name(NAMES[name], ast.Load()))
        case ast.Call(func=ast.Attribute(attr=name) as called) if name in NAMES:
            yield _with(node, "func", _with(called, "attr", NAMES[name]))


def _other_operators(place: _Place) -> Iterator[ast.AST]:
    node = place.node
    if isinstance(node, ast.Compare):
        for index, operator in enumerate(node.ops):
            for other in OPERATORS[type(operator)]:
                yield _with(node, "ops", [*node.ops[:index], other(), *node.ops[index + 1 :]])
    elif isinstance(node, (ast.BinOp, ast.BoolOp, ast.AugAssign)):
        of_types = isinstance(node.op, ast.BitOr) and place.where == "module"  # a union: it would only fail to import
        for other in () if of_types else OPERATORS.get(type(node.op), ()):
            yield _with(node, "op", other())


def _other_conditions(node: ast.AST) -> Iterator[ast.AST]:
    """Negated, unless another change does that."""
    if isinstance(node, (ast.If, ast.While, ast.IfExp)):
        if not _is_negated_elsewhere(node.test):
            yield _with(node, "test", ast.UnaryOp(ast.Not(), node.test))
    elif isinstance(node, ast.comprehension):
        for index, test in enumerate(node.ifs):
            if not _is_negated_elsewhere(test):
                ifs = [*node.ifs[:index], ast.UnaryOp(ast.Not(), test), *node.ifs[index + 1 :]]
                yield _with(node, "ifs", ifs)


def _is_negated_elsewhere(test: ast.expr) -> bool:
    is_not = isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)
    return is_not or (isinstance(test, ast.Compare) and len(test.ops) == 1)


def _can_go(place: _Place) -> bool:
    """Whether it is a statement without which the code would still run, though not do the same."""
    match place.node:
        case ast.Expr(value=ast.Call() | ast.Await()) | ast.AugAssign() | ast.Raise() | ast.Delete():
            return True
        case ast.Continue() | ast.Break():
            return True
        case ast.Assign(targets=targets):
            parts = [part for target in targets for part in getattr(target, "elts", [target])]
            kept = all(isinstance(part, (ast.Attribute, ast.Subscript)) for part in parts)
            return kept and not place.where.endswith("__init__")
    return False


def _with(node: ast.AST, name: str, value: object) -> ast.AST:
    other = copy.copy(node)
    setattr(other, name, value)
    return other


def _head(statement: ast.AST) -> str:
    shown = copy.copy(statement)
    for name in BODIES:
        if getattr(shown, name, None):
            setattr(shown, name, [])
    if isinstance(shown, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        shown.decorator_list = []
    return ast.unparse(ast.fix_missing_locations(shown))
