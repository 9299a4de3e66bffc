// API Management in front of the models: one address for many callers, with their tokens counted.
//
// The caller's own token goes through to the account, which knows the caller's role: the gateway has
// no key and no right of its own.
param location string
param prefix string
param contact string
param modelsEndpoint string
param workspaceId string

resource insights 'Microsoft.Insights/components@2020-02-02' = {
  name: '${prefix}-insights'
  location: location
  kind: 'web'
  properties: {
    Application_Type: 'web'
    WorkspaceResourceId: workspaceId
  }
}

resource service 'Microsoft.ApiManagement/service@2024-05-01' = {
  name: '${prefix}-gateway'
  location: location
  sku: {
    name: 'BasicV2'
    capacity: 1
  }
  identity: {
    type: 'SystemAssigned'
  }
  properties: {
    publisherName: 'promptmill'
    publisherEmail: contact
  }
}

// Monitoring Metrics Publisher: the gateway writes its metrics with its identity, not a key.
var metricsPublisher = '3913510d-42f4-4e42-8a64-420c390055eb'

resource publishes 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  scope: insights
  name: guid(insights.id, service.id, metricsPublisher)
  properties: {
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', metricsPublisher)
    principalId: service.identity.principalId
    principalType: 'ServicePrincipal'
  }
}

resource logger 'Microsoft.ApiManagement/service/loggers@2024-05-01' = {
  parent: service
  name: 'insights'
  properties: {
    loggerType: 'applicationInsights'
    resourceId: insights.id
    credentials: {
      connectionString: insights.properties.ConnectionString
      identityClientId: 'SystemAssigned'
    }
  }
  dependsOn: [
    publishes
  ]
}

resource api 'Microsoft.ApiManagement/service/apis@2024-05-01' = {
  parent: service
  name: 'openai'
  properties: {
    displayName: 'Azure OpenAI'
    path: 'openai'
    protocols: [
      'https'
    ]
    serviceUrl: '${modelsEndpoint}/openai'
    // Who may call is a matter of Entra ID, below.
    subscriptionRequired: false
  }
}

resource call 'Microsoft.ApiManagement/service/apis/operations@2024-05-01' = {
  parent: api
  name: 'call'
  properties: {
    displayName: 'Any call of version 1'
    method: 'POST'
    urlTemplate: '/v1/*'
  }
}

resource policy 'Microsoft.ApiManagement/service/apis/policies@2024-05-01' = {
  parent: api
  name: 'policy'
  properties: {
    format: 'rawxml'
    value: replace(loadTextContent('gateway.policy.xml'), 'TENANT', tenant().tenantId)
  }
  dependsOn: [
    logger
  ]
}

// No bodies: prompts and answers stay out of the logs.
resource diagnostics 'Microsoft.ApiManagement/service/apis/diagnostics@2024-05-01' = {
  parent: api
  name: 'applicationinsights'
  properties: {
    loggerId: logger.id
    metrics: true
    sampling: {
      samplingType: 'fixed'
      percentage: 5
    }
  }
}

output endpoint string = '${service.properties.gatewayUrl}/openai/v1'
