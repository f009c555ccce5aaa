-- drop: DROP FUNCTION IF EXISTS loracomp.task_weights(integer[], double precision[], double precision, text, text, double precision, integer, text)
-- Changes nothing and reads no table: live routing and the re-scoring of stored traces share it.
CREATE FUNCTION loracomp.task_weights(
    tasks integer[],
    similarities double precision[],
    temperature double precision,
    aggregation text,
    nucleus text,
    top_p double precision,
    max_adapters integer,
    weighting text DEFAULT 'similarity'
) RETURNS TABLE (task_id integer, probability double precision, in_nucleus boolean, weight double precision)
LANGUAGE sql IMMUTABLE PARALLEL SAFE ROWS 5
BEGIN ATOMIC
    WITH example AS (
        -- exp raises an underflow below -745, so the exponent is clamped.
        SELECT
            u.task_id,
            row_number() OVER (ORDER BY u.similarity DESC, u.place) AS rank,
            exp(greatest((u.similarity - max(u.similarity) OVER ()) / temperature, -700)) AS e
        FROM unnest(tasks, similarities) WITH ORDINALITY AS u (task_id, similarity, place)
        WHERE loracomp.check_routing_settings(temperature, aggregation, nucleus, top_p, max_adapters, weighting)
            AND loracomp.check_similarities(tasks, similarities)
    ), share AS (
        SELECT
            x.task_id,
            x.rank,
            x.e / sum(x.e) OVER () AS e,
            sum(x.e) OVER (ORDER BY x.rank) / sum(x.e) OVER () AS mass
        FROM example AS x
    ), mass AS (
        -- Cumulated masses meet top_p exactly where examples tie (.5 + .4 = .9), so they are compared with 1e-9 to spare.
        SELECT
            s.task_id,
            min(s.rank) AS best,
            CASE aggregation
                WHEN 'softmax_sum' THEN sum(s.e)
                WHEN 'mean' THEN avg(s.e)
                WHEN 'max' THEN max(s.e)
                WHEN 'vote' THEN count(*)
            END AS mass
        FROM share AS s
        WHERE nucleus = 'tasks' OR s.mass - s.e < top_p - 1e-9
        GROUP BY s.task_id
    ), ranked AS (
        -- Rounded, so that the last bit of a sum breaks no tie.
        SELECT m.task_id, m.mass, row_number() OVER (ORDER BY round(m.mass::numeric, 12) DESC, m.best) AS rank
        FROM mass AS m
    ), cumulated AS (
        SELECT
            r.task_id,
            r.rank,
            r.mass / sum(r.mass) OVER () AS p,
            sum(r.mass) OVER (ORDER BY r.rank) / sum(r.mass) OVER () AS mass
        FROM ranked AS r
    ), kept AS (
        SELECT
            c.task_id,
            c.p,
            c.rank,
            c.rank <= max_adapters AND (nucleus = 'examples' OR c.mass - c.p < top_p - 1e-9) AS keep
        FROM cumulated AS c
    )
    SELECT
        k.task_id,
        k.p,
        k.keep,
        CASE
            WHEN NOT k.keep THEN 0
            WHEN weighting = 'uniform' THEN 1.0 / count(*) FILTER (WHERE k.keep) OVER ()
            ELSE k.p / sum(k.p) FILTER (WHERE k.keep) OVER ()
        END
    FROM kept AS k
    ORDER BY k.rank;
END;
COMMENT ON FUNCTION loracomp.task_weights IS
'Tasks by falling probability, from retrieved examples'' tasks and cosine similarities: softmax over the examples, '
'aggregation to tasks, nucleus (over tasks, or over examples first), at most max_adapters, weights renormalised over the '
'kept. Never keeps none; ties go to the most similar example.';
