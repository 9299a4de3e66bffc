// Service Bus: the queue of jobs, and who may send, receive and count.
param location string
param prefix string
param queueName string
param tier string
param private bool
param workspaceId string
param workerPrincipalId string
param scalerPrincipalId string
param operators array
param operatorsAre string

// Azure Service Bus Data Receiver: the workers receive, renew and settle.
var dataReceiver = '4f6d3b9b-027b-4f4c-9142-0e5a2a2247e0'
// Azure Service Bus Data Sender: operators enqueue, and workers put jobs off.
var dataSender = '69a216fc-b8fb-44d8-bc22-1f3c2cd27a39'
// Azure Service Bus Data Owner: KEDA reads the queue's length through the management API, which the
// two roles above do not open. On this one queue, by an identity that no worker has.
var dataOwner = '090c5cfd-751d-490a-894a-3ce6f1109419'

resource namespace 'Microsoft.ServiceBus/namespaces@2024-01-01' = {
  name: '${prefix}-queue'
  location: location
  sku: {
    name: tier
    tier: tier
  }
  properties: {
    // Entra ID alone opens the namespace: there is no key that could leak.
    disableLocalAuth: true
    minimumTlsVersion: '1.2'
    publicNetworkAccess: private ? 'Disabled' : 'Enabled'
  }
}

resource queue 'Microsoft.ServiceBus/namespaces/queues@2024-01-01' = {
  parent: namespace
  name: queueName
  properties: {
    // The longest there is. Workers renew at half, so that a call of ten minutes keeps its job.
    lockDuration: 'PT5M'
    // A job that ends its worker again and again becomes a dead letter.
    maxDeliveryCount: 10
    // The message id is the job's: enqueuing the same file again, within a day, adds nothing.
    requiresDuplicateDetection: true
    duplicateDetectionHistoryTimeWindow: 'P1D'
    // A job's own deadline ends it with an outcome. One that the queue dropped would have none.
    deadLetteringOnMessageExpiration: true
    defaultMessageTimeToLive: 'P14D'
    maxSizeInMegabytes: 5120
    enableBatchedOperations: true
  }
}

resource workerReceives 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  scope: queue
  name: guid(queue.id, workerPrincipalId, dataReceiver)
  properties: {
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', dataReceiver)
    principalId: workerPrincipalId
    principalType: 'ServicePrincipal'
  }
}

resource workerSends 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  scope: queue
  name: guid(queue.id, workerPrincipalId, dataSender)
  properties: {
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', dataSender)
    principalId: workerPrincipalId
    principalType: 'ServicePrincipal'
  }
}

resource scalerCounts 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  scope: queue
  name: guid(queue.id, scalerPrincipalId, dataOwner)
  properties: {
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', dataOwner)
    principalId: scalerPrincipalId
    principalType: 'ServicePrincipal'
  }
}

resource operatorsSend 'Microsoft.Authorization/roleAssignments@2022-04-01' = [
  for operator in operators: {
    scope: queue
    name: guid(queue.id, operator, dataSender)
    properties: {
      roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', dataSender)
      principalId: operator
      principalType: operatorsAre
    }
  }
]

// `status` looks into the queue, which takes the right to receive.
resource operatorsLook 'Microsoft.Authorization/roleAssignments@2022-04-01' = [
  for operator in operators: {
    scope: queue
    name: guid(queue.id, operator, dataReceiver)
    properties: {
      roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', dataReceiver)
      principalId: operator
      principalType: operatorsAre
    }
  }
]

resource audit 'Microsoft.Insights/diagnosticSettings@2021-05-01-preview' = {
  scope: namespace
  name: 'audit'
  properties: {
    workspaceId: workspaceId
    logs: [
      {
        categoryGroup: 'audit'
        enabled: true
      }
    ]
    metrics: [
      {
        category: 'AllMetrics'
        enabled: true
      }
    ]
  }
}

output namespaceId string = namespace.id
output namespaceName string = namespace.name
output host string = '${namespace.name}.servicebus.windows.net'
