"""When a node that has looked for a name in vain sees it, after another node made it."""

import guest
from nodes import VOLUME, Node, serve


def main():
    serve()
    alpha, beta = Node("alpha"), Node("beta")
    for node in (alpha, beta):
        node.mount("4.1")
    with alpha.hand() as writer, beta.hand() as reader:
        for directory in ("plain", "reopened"):
            writer.ask("make", f"{VOLUME}/{directory}")
        plain, reopened = f"{VOLUME}/plain/record", f"{VOLUME}/reopened/record"
        before = [reader.ask("sees", plain), reader.ask("sees", reopened)]
        published = writer.ask("put", plain, "it")
        writer.ask("put", reopened, "it")
        at_once = [reader.ask("sees", plain), reader.ask("sees_reopened", reopened)]
        guest.result(before=before, at_once=at_once)
        late = reader.ask("sees_late", plain, 90, timeout=120)
        guest.result(late=late and late - published)


main()
