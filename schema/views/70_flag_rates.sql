-- How often does each rule fire?
-- One row per bundle and rule that fired at least once; shadow jobs count for their bundle.
CREATE VIEW flag_rates AS
SELECT
    fired.bundle AS bundle,
    fired.rule AS rule,
    fired.films AS flagged_films,
    total.films AS films,
    CAST(fired.films AS FLOAT) / total.films AS rate
FROM (
    SELECT flag_drift.bundle AS bundle, flag_drift.rule AS rule, CAST(SUM(flag_drift.flagged_films) AS BIGINT) AS films
    FROM flag_drift
    GROUP BY flag_drift.bundle, flag_drift.rule
) AS fired
JOIN (
    SELECT film_drift.bundle AS bundle, CAST(SUM(film_drift.films) AS BIGINT) AS films
    FROM film_drift
    GROUP BY film_drift.bundle
) AS total ON total.bundle = fired.bundle
