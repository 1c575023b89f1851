-- What did the night bring?
-- One row per day (UTC, when the work ended) and lane.
CREATE VIEW overnight_summary AS
SELECT
    counted.day AS day,
    counted.lane AS lane,
    counted.done AS done,
    counted.flagged AS flagged,
    counted.ineligible AS ineligible,
    counted.failed AS failed,
    counted.mean_wait_seconds AS mean_wait_seconds,
    counted.mean_run_seconds AS mean_run_seconds
FROM (
    SELECT
        daily_lane.day,
        daily_lane.lane,
        daily_lane.done,
        daily_lane.flagged,
        daily_lane.ineligible,
        daily_lane.failed,
        daily_lane.mean_wait_seconds,
        daily_lane.mean_run_seconds
    FROM daily_lane
    WHERE NOT EXISTS (SELECT 1 FROM daily_open WHERE daily_open.day = daily_lane.day)
    UNION ALL
    SELECT
        open_day_lane.day,
        open_day_lane.lane,
        open_day_lane.done,
        open_day_lane.flagged,
        open_day_lane.ineligible,
        open_day_lane.failed,
        open_day_lane.mean_wait_seconds,
        open_day_lane.mean_run_seconds
    FROM open_day_lane
) AS counted
