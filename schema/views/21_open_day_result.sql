-- Which results are of days that are not counted yet?
-- One row per result, whether published or of a bundle on trial, with the group it is counted in. The days are UTC and
-- of the end of the work; the age bands are those of the rule area_out_of_range. What is known of the film is looked up
-- row by row: for a join PostgreSQL would read all films.
CREATE VIEW open_day_result AS
SELECT
    daily_open.day AS day,
    job.bundle_id AS bundle_id,
    (SELECT instance.station FROM instance WHERE instance.id = job.instance_id) AS station,
    (
        SELECT
            CASE
                WHEN instance.age_days IS NULL THEN 'age unknown'
                WHEN instance.age_days < 365.25 THEN 'under 1 year'
                WHEN instance.age_days < 1826.25 THEN '1 to 4 years'
                WHEN instance.age_days < 5844 THEN '5 to 15 years'
                ELSE '16 years and over'
            END
        FROM instance
        WHERE instance.id = job.instance_id
    ) AS age_band,
    job.id AS job_id,
    job.instance_id AS instance_id
FROM daily_open
JOIN job ON job.finished_at >= daily_open.begins_at AND job.finished_at < daily_open.ends_at
WHERE job.kind <> 'verify' AND job.state = 'done'
