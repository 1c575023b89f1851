-- What is still to be delivered, where to, and since when?
-- One row per destination and state of deliveries that are not at their end, and of those that failed for good.
CREATE VIEW delivery_backlog AS
SELECT
    delivery_destination.name AS destination,
    delivery.state AS state,
    COUNT(*) AS deliveries,
    MIN(delivery.created_at) AS oldest_created_at,
    delivery_destination.blocked_until AS blocked_until,
    delivery_destination.code AS destination_code
FROM delivery
JOIN delivery_destination ON delivery_destination.id = delivery.destination_id
WHERE delivery.state IN ('ready', 'leased', 'delayed', 'failed')
GROUP BY
    delivery_destination.name, delivery.state, delivery_destination.blocked_until, delivery_destination.code
