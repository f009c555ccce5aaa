-- Reads only, with its owner's rights.
-- It jumps through the index on submitted_by from one name to the next, so its time does not depend on the number of jobs that are left.
CREATE VIEW bi.dim_submitter AS
WITH RECURSIVE submitter AS (
    (SELECT j.submitted_by FROM loracomp.job AS j ORDER BY j.submitted_by LIMIT 1)
    UNION ALL
    SELECT n.submitted_by
    FROM submitter AS s
    CROSS JOIN LATERAL (
        SELECT j.submitted_by FROM loracomp.job AS j WHERE j.submitted_by > s.submitted_by
        ORDER BY j.submitted_by LIMIT 1
    ) AS n
)

SELECT
    s.submitted_by::text AS submitted_by,
    r.role IS NOT NULL AS role_exists,
    coalesce(pg_has_role(r.role, to_regrole('loracomp_admin'), 'member'), FALSE) AS is_administrator
FROM (
    SELECT j.submitted_by FROM submitter AS j
    UNION -- those whose jobs were all purged, for reports that remember them
    SELECT d.submitted_by::name FROM loracomp.jobs_by_day AS d
) AS s
-- It reads no table of the system catalogue, because an installer who is not a superuser could not lock that.
CROSS JOIN LATERAL (SELECT to_regrole(quote_ident(s.submitted_by))) AS r (role);
COMMENT ON VIEW bi.dim_submitter IS
'Dimension: a row for every database role that has a job, or had one that was purged. Facts join it by submitted_by.';
COMMENT ON COLUMN bi.dim_submitter.submitted_by IS 'Key: name of the role.';
COMMENT ON COLUMN bi.dim_submitter.role_exists IS 'Whether the role still exists.';
COMMENT ON COLUMN bi.dim_submitter.is_administrator IS 'Whether the role is an administrator of loracomp.';
