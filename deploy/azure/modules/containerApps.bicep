// Container Apps: workers that come with the queue's length and go when it is empty, a nightly job, and,
// where tokens are given, the dashboard, which then also says how many workers are of use.
param location string
param prefix string
param image string
param registryServer string
param settings array
param workerIdentityId string
param scalerIdentityId string
param queueNamespace string
param queueName string
param maxWorkers int
param scaleByQueue bool
param nightlyAt string
param workspaceName string
param subnetId string

@secure()
@description('Empty is no dashboard.')
param operatorToken string

@secure()
@description('With it the scaler asks the dashboard; it is needed where there is one.')
param scalerToken string

// Names of apps are short: at most 32 characters.
var name = take(prefix, 24)
// A worker holds this many jobs easily; one more worker is worth its start for as many again.
var jobsAWorker = '200'
// Longer than `worker.shutdown_grace_seconds` (25): what ends there is recorded and settled after it.
var terminationGraceSeconds = 60
// A night, at most. A job that is cut off loses nothing: the next one goes on.
var nightSeconds = 43200

// The queue's length knows nothing of quotas: it brings workers up to `maxWorkers`. What the dashboard
// tells stops where the quota allows no more. Only one of the two rules stands, since of several the
// greatest number wins.
var byLength = {
  name: 'queue'
  custom: {
    type: 'azure-servicebus'
    metadata: {
      namespace: queueNamespace
      queueName: queueName
      messageCount: jobsAWorker
    }
    identity: scalerIdentityId
  }
}
var byUse = {
  name: 'useful'
  custom: {
    type: 'metrics-api'
    metadata: {
      url: hasDashboard ? '${dashboard!.outputs.url}/scaling' : ''
      valueLocation: 'useful_replicas'
      targetValue: '1'
      authMode: 'bearer'
    }
    auth: [
      {
        secretRef: 'scaler-token'
        triggerParameter: 'token'
      }
    ]
  }
}
var hasDashboard = !empty(operatorToken)

var container = {
  name: 'worker'
  image: image
  env: settings
  resources: {
    cpu: json('0.5')
    memory: '1Gi'
  }
}
var identity = {
  type: 'UserAssigned'
  userAssignedIdentities: {
    '${workerIdentityId}': {}
    '${scalerIdentityId}': {}
  }
}
// Which identity a container can get tokens of: the scaler's is for the platform alone.
var identitySettings = [
  {
    identity: workerIdentityId
    lifecycle: 'All'
  }
  {
    identity: scalerIdentityId
    lifecycle: 'None'
  }
]
var registries = [
  {
    server: registryServer
    identity: workerIdentityId
  }
]

resource workspace 'Microsoft.OperationalInsights/workspaces@2025-07-01' existing = {
  name: workspaceName
}

resource environment 'Microsoft.App/managedEnvironments@2025-01-01' = {
  name: '${prefix}-apps'
  location: location
  properties: {
    appLogsConfiguration: {
      destination: 'log-analytics'
      logAnalyticsConfiguration: {
        customerId: workspace.properties.customerId
        // The environment takes the key itself and shows it to nobody; no container sees it.
        sharedKey: workspace.listKeys().primarySharedKey
      }
    }
    workloadProfiles: [
      {
        name: 'Consumption'
        workloadProfileType: 'Consumption'
      }
    ]
    vnetConfiguration: empty(subnetId) ? null : {
      infrastructureSubnetId: subnetId
      internal: true
    }
  }
}

module dashboard 'dashboard.bicep' = if (hasDashboard) {
  name: 'dashboard'
  params: {
    location: location
    prefix: prefix
    image: image
    registryServer: registryServer
    settings: settings
    workerIdentityId: workerIdentityId
    environmentId: environment.id
    operatorToken: operatorToken
    scalerToken: scalerToken
    private: !empty(subnetId)
  }
}

resource worker 'Microsoft.App/containerApps@2026-01-01' = if (scaleByQueue) {
  name: '${name}-worker'
  location: location
  identity: identity
  properties: {
    environmentId: environment.id
    workloadProfileName: 'Consumption'
    configuration: {
      activeRevisionsMode: 'Single'
      registries: registries
      identitySettings: identitySettings
      secrets: hasDashboard ? [
        {
          name: 'scaler-token'
          value: scalerToken
        }
      ] : []
    }
    template: {
      containers: [
        union(container, {
          args: [
            'work'
          ]
        })
      ]
      terminationGracePeriodSeconds: terminationGraceSeconds
      scale: {
        minReplicas: 0
        maxReplicas: maxWorkers
        pollingInterval: 30
        cooldownPeriod: 300
        rules: [
          hasDashboard ? byUse : byLength
        ]
      }
    }
  }
}

// For jobs that gather by day and are worked on at night: as many workers at once, until the queue is
// empty.
resource night 'Microsoft.App/jobs@2026-01-01' = if (!empty(nightlyAt)) {
  name: '${name}-night'
  location: location
  identity: identity
  properties: {
    environmentId: environment.id
    workloadProfileName: 'Consumption'
    configuration: {
      triggerType: 'Schedule'
      scheduleTriggerConfig: {
        cronExpression: nightlyAt
        parallelism: maxWorkers
        replicaCompletionCount: maxWorkers
      }
      replicaTimeout: nightSeconds
      replicaRetryLimit: 1
      registries: registries
      identitySettings: identitySettings
    }
    template: {
      containers: [
        union(container, {
          args: [
            'work'
            '--drain'
          ]
        })
      ]
    }
  }
}

output environmentId string = environment.id
output dashboardUrl string = hasDashboard ? dashboard!.outputs.url : ''
