"""`fastvideo keys`: API keys of a server, which need not run."""

from jsonargparse import Namespace

from fastvideo.entrypoints.serve.settings import ServerSettings
from fastvideo.utils import require


def run(options: Namespace) -> int:
    """Add, list or revoke keys.

    Raises:
        ValueError: a scope that there is not, a key that there is not, or a database that cannot be opened.
    """
    from fastvideo.entrypoints.serve.flags import KEY_ACTIONS

    require(options.action in KEY_ACTIONS, "action", options.action, f"must be one of {', '.join(KEY_ACTIONS)}")
    try:
        from fastvideo.entrypoints.serve.database import open_engine
        from fastvideo.entrypoints.serve.keys import SCOPES, add_key, list_keys, revoke_key
        from fastvideo.entrypoints.serve.store import Store
    except ImportError as error:
        from fastvideo.entrypoints.serve.run import PACKAGES

        raise ImportError(f"fastvideo keys: {PACKAGES} ({error})") from error
    store = Store(open_engine(options.database or ServerSettings(data_dir=options.data_dir).database), "none")
    if options.action == "list":
        require(options.name is None, "name", options.name, "does nothing here", "leave it out")
        for row in list_keys(store):
            state = "revoked" if row["revoked_at"] else "valid"
            print(f"{row['id']}  {state}  {','.join(row['scopes'])}  {row['name']}")
        return 0
    require(options.name is not None, "name", options.name, f"say which key to {options.action}")
    if options.action == "revoke":
        require(revoke_key(store, options.name), "name", options.name, "no valid key has this id",
                "see fastvideo keys list")  # fmt: skip
        print(f"{options.name}: revoked")
        return 0
    scopes = tuple(scope for scope in options.scopes.split(",") if scope)
    for scope in scopes:
        require(scope in SCOPES, "scopes", scope, f"must be some of {', '.join(SCOPES)}")
    require(bool(scopes), "scopes", options.scopes, f"must be some of {', '.join(SCOPES)}")
    require(options.max_jobs is None or options.max_jobs > 0, "max_jobs", options.max_jobs, "must be at least 1")
    key_id, key = add_key(store, options.name, scopes, options.max_jobs)
    print(f"{key_id}: may {', '.join(scopes)}. The key is shown once:\n{key}")
    return 0
