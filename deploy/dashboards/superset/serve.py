"""Imports the dashboard bundle next to this file into Apache Superset and serves it; runs in Superset's environment.

    python serve.py --database postgresql://analyst@host/name [--home DIR] [--port 8088]

--database is a libpq URL with a login that is a member of loracomp_analyst. --embedded is the owner's URL of a database
on an embedded server, which trusts all users with access to its folder: the script creates a login `dashboard` there
and refreshes the reports.

Superset's own data, its session secret and the password of its user `admin` are stored in DIR. The import overwrites
changes that were made in Superset to the bundle's charts.
"""

import argparse
import os
import secrets
import sys
import warnings
from pathlib import Path

import yaml

HERE = Path(__file__).parent
BUNDLE = HERE / "bundle"


def main() -> None:
    """Create missing secrets, import the bundle, check it, and replace this process by the server."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    database = parser.add_mutually_exclusive_group(required=True)
    database.add_argument("--database", help="URL of the database, as an analyst")
    database.add_argument("--embedded", help="URL of a database on an embedded server, as its owner")
    parser.add_argument(
        "--home", type=Path, default=Path("~/.local/share/loracomp/superset"), help="Superset's own data"
    )
    parser.add_argument("--port", type=int, default=8088, help="on 127.0.0.1")
    options = parser.parse_args()
    home = options.home.expanduser().resolve()
    home.mkdir(parents=True, exist_ok=True)
    keep(home / "secret_key")
    password = keep(home / "password")
    os.environ |= {"SUPERSET_HOME": str(home), "SUPERSET_CONFIG_PATH": str(HERE / "superset_config.py")}
    warnings.simplefilter("ignore")  # Superset warns about its own libraries
    prepare(options.database or as_analyst(options.embedded), password)
    address = f"http://127.0.0.1:{options.port}/superset/dashboard/loracomp/"
    print(f"\n{address}\nuser admin, password {password}; up in some seconds, until Ctrl-C\n", flush=True)
    gunicorn = [sys.executable, "-m", "gunicorn", "--bind", f"127.0.0.1:{options.port}", "--workers", "1"]
    gunicorn += [
        "--worker-class",
        "gthread",
        "--threads",
        "8",
        "--timeout",
        "120",
        "--no-control-socket",
        "superset.app:create_app()",
    ]
    os.execv(sys.executable, gunicorn)


def keep(path: Path) -> str:
    """Read a secret from a file, which is created with a random one if it is missing."""
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(secrets.token_urlsafe(32))
    return path.read_text()


def as_analyst(url: str) -> str:
    """URL of the same database for the login `dashboard`, which is created if it is missing."""
    import psycopg2

    with psycopg2.connect(url) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT to_regrole('dashboard') IS NULL")
        if cursor.fetchone() == (True,):
            cursor.execute("CREATE ROLE dashboard LOGIN IN ROLE loracomp_analyst")
            cursor.execute("ALTER ROLE dashboard SET statement_timeout = '60s'")
        cursor.execute("SELECT loracomp.refresh_reports()")
    scheme, _, rest = url.partition("://")
    return f"{scheme}://dashboard@{rest.partition('@')[2]}"


def prepare(database: str, password: str) -> None:
    """Upgrade Superset's own database, and create its roles, a user and the dashboard of the bundle."""
    from flask_migrate import upgrade
    from superset.app import create_app

    app = create_app()
    with app.app_context():
        from superset import appbuilder, security_manager
        from superset.commands.importers.v1.assets import ImportAssetsCommand
        from superset.utils.core import override_user

        upgrade()
        appbuilder.add_permissions(update_perms=True)
        security_manager.sync_role_definitions()
        if not security_manager.find_user("admin"):
            role = security_manager.find_role("Admin")
            security_manager.add_user("admin", "loracomp", "admin", "admin@localhost", role, password)
        with override_user(security_manager.find_user("admin")):
            ImportAssetsCommand(contents(database)).run()
            check()


def contents(database: str) -> dict[str, str]:
    """The bundle's files by name, with the URL of `database` filled in."""
    files = {str(path.relative_to(BUNDLE)): path.read_text() for path in BUNDLE.rglob("*.yaml")}
    connection = yaml.safe_load(files["databases/loracomp.yaml"])
    connection["sqlalchemy_uri"] = f"postgresql+psycopg2://{database.partition('://')[2]}"
    metadata = yaml.safe_load(files["metadata.yaml"]) | {"type": "assets"}
    return files | {"databases/loracomp.yaml": yaml.dump(connection), "metadata.yaml": yaml.dump(metadata)}


def check() -> None:
    """Read columns' comments from the database, and exit with an error unless every chart is on the dashboard."""
    from superset.connectors.sqla.models import SqlaTable
    from superset.extensions import db
    from superset.models.dashboard import Dashboard

    for dataset in db.session.query(SqlaTable).filter_by(schema="bi"):
        dataset.fetch_metadata()
    db.session.commit()
    found = len(db.session.query(Dashboard).filter_by(slug="loracomp").one().slices)
    expected = len(list(BUNDLE.glob("charts/*.yaml")))
    if found != expected:
        sys.exit(f"the dashboard has {found} charts and the bundle {expected}")


if __name__ == "__main__":
    main()
