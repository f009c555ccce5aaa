-- loracomp {{ release }}: {{ "the whole schema" if since is none else "from the schema of " ~ since }}, as `loracomp init` makes it. Run it by psql as the database's
-- owner. It is one transaction: it happens completely or not at all.
\set ON_ERROR_STOP on
\set QUIET on
\o /dev/null
SET client_encoding = 'UTF8';
SET client_min_messages = warning;
BEGIN;
-- Names are bound in pg_catalog and our schema alone. Where others may create, their overloads could be called in place of built-in functions.
SET LOCAL search_path = loracomp, pg_temp;

DO $check$
DECLARE
    problem text;
BEGIN
    IF current_setting('server_encoding') <> 'UTF8' THEN
        RAISE EXCEPTION 'loracomp needs a database with the encoding UTF8';
    END IF;
{% if since is none %}
    IF to_regclass('loracomp.alembic_version') IS NOT NULL THEN
        RAISE EXCEPTION 'loracomp is installed here' USING HINT = 'Print the difference: loracomp sql --from RELEASE.';
    END IF;
{% else %}
    IF (SELECT version_num FROM loracomp.alembic_version) <> '{{ base }}' THEN
        RAISE EXCEPTION 'this database is not at the schema of {{ since }} ({{ base }})';
    END IF;
{% endif %}
    problem := ({{ others_in_schemas }});
    IF problem IS NOT NULL THEN
        RAISE EXCEPTION '%', problem;
    END IF;
END
$check$;

-- Roles belong to the server, so another database may have made them.
DO $roles$
DECLARE
    missing text;
BEGIN
    FOR missing IN SELECT unnest('{ {{- roles | join(",") -}} }'::text[]) EXCEPT SELECT rolname FROM pg_roles LOOP
        EXECUTE format('CREATE ROLE %I NOLOGIN', missing);
    END LOOP;
END
$roles$;
CREATE EXTENSION IF NOT EXISTS vector SCHEMA public;
-- Loads pgvector: before that, only superusers may SET hnsw.* on a function.
SELECT '[1]'::public.vector;
{% if since is none %}
CREATE SCHEMA loracomp;
COMMENT ON SCHEMA loracomp IS '{{ note }}';
{% else %}

-- What others made on functions and views, to be done again once those are back.
CREATE TEMP TABLE kept (statement text) ON COMMIT DROP;
DO $drop$
DECLARE
    view record;
    statement text;
BEGIN
    SET LOCAL lock_timeout = '1min';
    EXECUTE 'LOCK TABLE ' || (SELECT string_agg(t.name, ', ') FROM ({{ lockable_tables }}) AS t (name));
    SET LOCAL search_path = '';
    INSERT INTO pg_temp.kept {{ other_grants }};
    FOR view IN SELECT * FROM ({{ user_views }}) AS v WHERE v.is_kept LOOP
        INSERT INTO pg_temp.kept VALUES (view.definition);
        EXECUTE view.hollow;
    END LOOP;
    SET LOCAL search_path = loracomp, pg_temp;
    FOR statement IN
        SELECT d.statement FROM loracomp.sql_object AS o, unnest(o.drops) WITH ORDINALITY AS d (statement, place)
        ORDER BY o.position DESC, d.place
    LOOP
        EXECUTE statement;
    END LOOP;
    DELETE FROM loracomp.sql_object;
END
$drop$;
{{ revoke }};
{% endif %}

{{ migrations }}
-- Functions, views, triggers and grants. loracomp.sql_object keeps for each file what drops its objects.
CREATE TEMP VIEW made AS {{ object_drops }};
CREATE TEMP TABLE known ON COMMIT DROP AS TABLE made;
CREATE FUNCTION pg_temp.note_file(path text, place integer, checksum text) RETURNS void LANGUAGE sql
BEGIN ATOMIC
    INSERT INTO loracomp.sql_object (path, position, drops, checksum)
    VALUES (path, place, ARRAY(SELECT statement FROM made WHERE statement NOT IN (TABLE known)), checksum);
    INSERT INTO known SELECT statement FROM made WHERE statement NOT IN (TABLE known);
END;
{% for file in files %}

-- sql/{{ file.path }}
{{ file.source }}
SELECT pg_temp.note_file('{{ file.path }}', {{ loop.index0 }}, '{{ file.checksum }}');
{% endfor %}
{% if since is not none %}

DO $again$
DECLARE
    statement text;
BEGIN
    FOR statement IN SELECT k.statement FROM pg_temp.kept AS k LOOP
        BEGIN
            EXECUTE statement;
        EXCEPTION WHEN undefined_table OR undefined_function OR undefined_column THEN
            IF statement NOT LIKE 'GRANT %' THEN
                RAISE;
            END IF;
            RAISE WARNING 'the object is gone, so this was not done again: %', statement;
        END;
    END LOOP;
END
$again$;
{% endif %}
COMMIT;
