-- Declarations outlive an upgrade: their views, triggers and functions are in other schemas. Their functions are made again as this
-- release makes them, and all rows are looked at, because statements may have missed them meanwhile.
SELECT loracomp.make_parts(a) FROM loracomp.answers AS a
WHERE
    a.source_oid = a.source AND a.source IN (SELECT c.oid FROM pg_class AS c)
    AND num_nulls(VARIADIC loracomp.source_names(a.source, a.columns || a.key_columns)) = 0;
UPDATE loracomp.answers SET sweep = 'source', swept_to = NULL;
