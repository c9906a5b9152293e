//! The tables, and every statement that a coordinator sends to them.

/// Version of the tables.
pub(super) const TABLES_VERSION: i32 = 1;

/// Everything lies in a schema of its own, so that the database may hold other things.
pub(super) const TABLES: &str = "
    CREATE SCHEMA IF NOT EXISTS graftwork;
    CREATE TABLE graftwork.mark (
        one INTEGER PRIMARY KEY CHECK (one = 1), application TEXT NOT NULL, tables INTEGER NOT NULL
    );
    CREATE TABLE graftwork.leader (
        one INTEGER PRIMARY KEY CHECK (one = 1), term BIGINT NOT NULL, leader TEXT NOT NULL, who TEXT NOT NULL,
        addresses TEXT NOT NULL, since TIMESTAMPTZ NOT NULL, expires TIMESTAMPTZ NOT NULL
    );
    CREATE TABLE graftwork.facts (
        number BIGINT PRIMARY KEY, version INTEGER NOT NULL, fact TEXT NOT NULL, sum TEXT NOT NULL
    );
    CREATE TABLE graftwork.snapshot (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        number BIGINT NOT NULL, version INTEGER NOT NULL, state TEXT NOT NULL, sum TEXT NOT NULL
    );
    INSERT INTO graftwork.mark VALUES (1, 'graftwork', 1);
    INSERT INTO graftwork.leader VALUES (1, 0, '', '', '', '-infinity', '-infinity');
";

/// Whose tables are there: whether anything is, and what the mark says.
pub(super) const FOUND: &str = "
    SELECT to_regclass('graftwork.mark') IS NOT NULL, EXISTS (
        SELECT FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace WHERE nspname = 'graftwork'
    ), current_setting('server_encoding'), current_setting('fsync')
";

pub(super) const LEAD: &str = "
    UPDATE graftwork.leader SET term = greatest(term, $1) + 1, leader = $2, who = $3, addresses = $4,
        since = clock_timestamp(), expires = clock_timestamp() + $5::float8 * interval '1 millisecond'
    WHERE expires <= clock_timestamp() OR leader = $2 OR leader = ANY($6) RETURNING term
";

pub(super) const LEADER: &str = "
    SELECT leader, who, addresses, to_char(since AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS') || ' UTC', term,
        greatest(extract(epoch FROM expires - clock_timestamp()) * 1000, 0)::float8
    FROM graftwork.leader
";

/// Of the last leader. Its times are left out: those of a database that nobody has led are infinite.
pub(super) const TERM: &str = "SELECT term FROM graftwork.leader";

pub(super) const RENEW: &str = "
    UPDATE graftwork.leader SET expires = clock_timestamp() + $3::float8 * interval '1 millisecond'
    WHERE term = $1 AND leader = $2 AND expires > clock_timestamp() RETURNING term
";

/// One statement, so that it has no middle in which a coordinator could freeze and keep the row locked. A try that was given
/// up and runs late brings nothing back that a newer snapshot holds already.
pub(super) const APPEND: &str = "
    WITH lead AS (
        UPDATE graftwork.leader SET expires = clock_timestamp() + $3::float8 * interval '1 millisecond'
        WHERE term = $1 AND leader = $2 AND expires > clock_timestamp() RETURNING term
    ), kept AS (
        INSERT INTO graftwork.snapshot (one, number, version, state, sum)
        SELECT 1, $4, $5, $6, $7 FROM lead WHERE $4::bigint IS NOT NULL
        ON CONFLICT (one) DO UPDATE SET
            number = excluded.number, version = excluded.version, state = excluded.state, sum = excluded.sum
        WHERE excluded.number > snapshot.number
    ), gone AS (
        DELETE FROM graftwork.facts USING lead WHERE number <= $4::bigint
    ), added AS (
        INSERT INTO graftwork.facts (number, version, fact, sum)
        SELECT new.number, new.version, new.fact, new.sum
        FROM lead, unnest($8::bigint[], $9::integer[], $10::text[], $11::text[]) AS new (number, version, fact, sum)
        WHERE new.number > coalesce((SELECT number FROM graftwork.snapshot), 0)
    )
    SELECT term FROM lead
";

pub(super) const RESIGN: &str =
    "UPDATE graftwork.leader SET expires = clock_timestamp() WHERE term = $1 AND leader = $2";

pub(super) const LAST: &str = "
    SELECT greatest((SELECT max(number) FROM graftwork.facts), (SELECT max(number) FROM graftwork.snapshot), 0)
";

/// Whether anything is kept, under which term, and whether somebody leads; nobody takes the lead meanwhile.
pub(super) const TAKEN: &str = "
    SELECT term, expires > clock_timestamp(),
        EXISTS (SELECT FROM graftwork.facts) OR EXISTS (SELECT FROM graftwork.snapshot)
    FROM graftwork.leader FOR UPDATE
";

pub(super) const FILL_SNAPSHOT: &str =
    "INSERT INTO graftwork.snapshot (one, number, version, state, sum) VALUES (1, $1, $2, $3, $4)";

pub(super) const FILL_FACTS: &str = "
    INSERT INTO graftwork.facts (number, version, fact, sum)
    SELECT * FROM unnest($1::bigint[], $2::integer[], $3::text[], $4::text[])
";

pub(super) const FILL_TERM: &str = "UPDATE graftwork.leader SET term = greatest(term, $1)";

pub(super) const SNAPSHOT: &str = "SELECT number, version, state, sum FROM graftwork.snapshot";

/// So many facts behind one.
pub(super) const FACTS: &str =
    "SELECT number, version, fact, sum FROM graftwork.facts WHERE number > $1 ORDER BY number LIMIT $2";
