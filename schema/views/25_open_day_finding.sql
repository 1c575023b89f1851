-- How high do findings score on the days that are not counted yet?
-- One row per day, bundle, station, age band and finding: what daily_finding has of the other days.
CREATE VIEW open_day_finding AS
SELECT
    open_day_result.day AS day,
    open_day_result.bundle_id AS bundle_id,
    open_day_result.station AS station,
    open_day_result.age_band AS age_band,
    finding_score.finding AS finding,
    COUNT(*) AS films,
    SUM(CASE WHEN finding_score.positive THEN 1 ELSE 0 END) AS positive_films,
    SUM(finding_score.probability) AS probability_sum,
    SUM(finding_score.probability * finding_score.probability) AS probability_squares,
    SUM(finding_score.spread) AS spread_sum,
    SUM(CASE WHEN finding_score.probability < 0.1 THEN 1 ELSE 0 END) AS tenth_1,
    SUM(CASE WHEN finding_score.probability >= 0.1 AND finding_score.probability < 0.2 THEN 1 ELSE 0 END) AS tenth_2,
    SUM(CASE WHEN finding_score.probability >= 0.2 AND finding_score.probability < 0.3 THEN 1 ELSE 0 END) AS tenth_3,
    SUM(CASE WHEN finding_score.probability >= 0.3 AND finding_score.probability < 0.4 THEN 1 ELSE 0 END) AS tenth_4,
    SUM(CASE WHEN finding_score.probability >= 0.4 AND finding_score.probability < 0.5 THEN 1 ELSE 0 END) AS tenth_5,
    SUM(CASE WHEN finding_score.probability >= 0.5 AND finding_score.probability < 0.6 THEN 1 ELSE 0 END) AS tenth_6,
    SUM(CASE WHEN finding_score.probability >= 0.6 AND finding_score.probability < 0.7 THEN 1 ELSE 0 END) AS tenth_7,
    SUM(CASE WHEN finding_score.probability >= 0.7 AND finding_score.probability < 0.8 THEN 1 ELSE 0 END) AS tenth_8,
    SUM(CASE WHEN finding_score.probability >= 0.8 AND finding_score.probability < 0.9 THEN 1 ELSE 0 END) AS tenth_9,
    SUM(CASE WHEN finding_score.probability >= 0.9 THEN 1 ELSE 0 END) AS tenth_10
FROM open_day_result
JOIN finding_score ON finding_score.job_id = open_day_result.job_id
GROUP BY
    open_day_result.day, open_day_result.bundle_id, open_day_result.station, open_day_result.age_band, finding_score.finding
