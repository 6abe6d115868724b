//! The bus on RabbitMQ: quorum queues, confirms, partitions by room.
